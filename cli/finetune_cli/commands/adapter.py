"""`finetune get-adapter`: download a published adapter and compare its digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.published import read_result
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.client import StoredResult


def download_adapter(
    session: Session,
    name: Annotated[
        str, typer.Argument(help="Name of the run, or the S3 prefix of a result.", autocompletion=complete_runs)
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder, which is created.")],
) -> None:
    """Download a published adapter with its report and model card, and compare all digests with its manifest.

    Files that the folder already has with the right content are kept.
    """
    store, result = read_result(session, name)
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{folder} is not a folder", EXIT_USAGE)
    with _show_progress(session, result) as count_bytes:
        paths = store.download(result, folder, count_bytes)
    size = sum(file.size for file in result.manifest.files)
    if session.terminal.prints_data:
        files = [str(path) for path in paths]
        session.terminal.print_data({"uri": result.uri, "digest": result.digest, "files": files, "bytes": size})
        return
    from finetune_trainer.formatting import format_bytes, pluralize

    files_text = f"{pluralize(len(paths), 'file')}, {format_bytes(size)}"
    session.terminal.print_line(f"{folder}: {files_text}, all digests match {result.uri}/manifest.json")


@contextmanager
def _show_progress(session: Session, result: StoredResult) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal, and yield the function that counts bytes."""
    if not session.terminal.is_interactive or session.terminal.prints_data:
        yield _count_nothing
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    total = sum(file.size for file in result.manifest.files)
    with Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)


def _count_nothing(_: int) -> None:
    """Ignore the progress of a download."""
