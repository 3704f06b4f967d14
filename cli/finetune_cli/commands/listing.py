"""`finetune list`: the runs of a namespace."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_cli.session import Session


def list_runs(
    session: Session,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List all namespaces.")] = False,
) -> None:
    """List runs, the newest first."""
    jobs = session.client.jobs.list(all_namespaces=all_namespaces)
    session.terminal.print_table(["NAME", "AGE"], [[job.metadata.name, ""] for job in jobs])
