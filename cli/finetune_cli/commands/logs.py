"""`finetune logs`: the log of a run, from its pods or from S3."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_USAGE
from finetune_cli.session import Session


def print_log(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the run.", autocompletion=complete_runs)],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print lines as they are written.")] = False,
    pod: Annotated[str | None, typer.Option(help="Name of the pod; by default the newest one.")] = None,
) -> None:
    """Print the log of a run: from its newest pod, or from S3 when the pods are gone."""
    if session.terminal.prints_data:
        raise CommandError("a log has no format json or yaml; leave out --output", EXIT_USAGE)
    for line in session.client.logs(name, follow=follow, pod=pod):
        session.terminal.print_line(line.rstrip("\r\n"))
        if follow:
            session.terminal.flush()
