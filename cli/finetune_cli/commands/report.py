"""`finetune report`: fetch a report and open it in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.errors import CommandError
from finetune_cli.files import write_file
from finetune_cli.published import is_address, open_store, read_result
from finetune_cli.session import Session
from finetune_cli.targets import JOB, SCHEDULE, Target, parse_target

if TYPE_CHECKING:
    from finetune_trainer.contract import Storage


def open_report(
    session: Session,
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a run, schedule/NAME, sweep/NAME, or the S3 prefix of a result.",
            autocompletion=complete_runs,
        ),
    ],
    file: Annotated[
        Path | None, typer.Option(help="The file to write; by default report-NAME.html in this folder.")
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
) -> None:
    """Fetch the report of a run, a schedule or a sweep from S3 and open it in the browser."""
    content, label = _fetch(session, name)
    path = write_file(file or Path(f"report-{label}.html"), content)
    if session.terminal.prints_data:
        session.terminal.print_data({"file": str(path), "bytes": len(content)})
    else:
        session.terminal.print_line(str(path))
    if not no_open and session.terminal.is_interactive:
        _open_browser(session, path)


def _fetch(session: Session, name: str) -> tuple[bytes, str]:
    """Return the page, and what it is about in the name of a file."""
    if is_address(name):
        store, result = read_result(session, name)
        return store.read_report(result), _make_file_name(result.uri.rpartition("/")[2])
    target = parse_target(name)
    if target.kind == JOB:
        return session.client.report(target.name), _make_file_name(target.name)
    return _fetch_owner_report(session, target), _make_file_name(target.name)


def _fetch_owner_report(session: Session, target: Target) -> bytes:
    owner = target.get_resource(session).get(target.name)
    uri = owner.status.report_uri if owner.status else None
    if not uri:
        when = "it is written after the first run" if target.kind == SCHEDULE else "it is written when trials end"
        raise CommandError(f"{target} has no report yet: {when}")
    storage: Storage = owner.spec.template.spec.storage
    return open_store(session, storage).read_text(uri).encode()


def _make_file_name(text: str) -> str:
    """Return a text with the characters of a Kubernetes name only."""
    return "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "_" for char in text)[:100]


def _open_browser(session: Session, path: Path) -> None:
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        session.terminal.print_note("no browser was found; open the file in one")
