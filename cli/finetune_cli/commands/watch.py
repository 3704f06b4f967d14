"""`finetune watch`: the progress of a run until it ends."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.session import Session


def watch_run(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the run.", autocompletion=complete_runs)],
    timeout: Annotated[
        float | None, typer.Option(min=0, metavar="SECONDS", help="Stop watching after this time.")
    ] = None,
) -> None:
    """Follow a run until it ends: progress, losses, remaining time, stage and last Event.

    The exit status is 0 if the run is complete, 1 if it failed, 3 if it was cancelled, 4 if it was suspended and 5
    after --timeout. Ctrl-C stops watching; the run continues.
    """
    from finetune_cli.following import follow_run

    follow_run(session, name, timeout)
