"""Follows a run until it ends, and turns its outcome into an exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from finetune_cli.exit_statuses import EXIT_CANCELLED, EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_SUSPENDED
from finetune_cli.progress_view import LineView, LiveView, SilentView
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.api import FineTuneJob

_STATUS_BY_CONDITION = {
    "Complete": 0,
    "Failed": EXIT_FAILURE,
    "Cancelled": EXIT_CANCELLED,
    "Suspended": EXIT_SUSPENDED,
}


def follow_run(session: Session, name: str, timeout_seconds: float | None) -> None:
    """Show the progress of a run until it ends, print its outcome, and exit with its status.

    Ctrl-C leaves the run alone. Raises `WaitTimeout`.
    """
    from finetune_operator.client import wait_condition_of

    try:
        with _create_view(session, name) as view:
            job = session.client.wait(name, timeout_seconds=timeout_seconds, on_change=view.update)
    except KeyboardInterrupt:
        session.terminal.print_note(
            f"{name} continues in the cluster; `finetune watch {name}` follows it, `finetune cancel {name}` ends it"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print_outcome(session, job)
    raise typer.Exit(_STATUS_BY_CONDITION.get(wait_condition_of(job) or "", EXIT_FAILURE))


def _create_view(session: Session, name: str) -> LiveView | LineView | SilentView:
    if session.terminal.prints_data:
        return SilentView()
    if session.terminal.is_interactive:
        return LiveView(name, lambda: session.client.events(name))
    return LineView(session.terminal)


def _print_outcome(session: Session, job: FineTuneJob) -> None:
    from finetune_operator.client import summarize_job

    summary = summarize_job(job)
    if session.terminal.prints_data:
        from finetune_cli.data import to_data

        session.terminal.print_data(to_data(summary))
        return
    reason = f" ({summary.reason})" if summary.reason else ""
    message = f": {summary.message}" if summary.message else ""
    session.terminal.print_line(" ".join(f"{summary.name}: {summary.phase}{reason}{message}".split()))
    if summary.adapter_uri:
        session.terminal.print_line(f"adapter: {summary.adapter_uri}")
    if summary.report_uri:
        session.terminal.print_line(f"report:  {summary.report_uri}; open it with `finetune report {summary.name}`")
