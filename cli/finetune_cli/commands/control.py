"""`finetune suspend`, `resume` and `cancel`: runs, schedules and sweeps."""

from __future__ import annotations

from typing import Annotated

import typer

from finetune_cli.completion import complete_runs
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_FAILURE, EXIT_USAGE
from finetune_cli.session import Session
from finetune_cli.targets import JOB, SCHEDULE, Target, parse_target

TargetName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of a run, schedule/NAME or sweep/NAME.", autocompletion=complete_runs),
]


def suspend(session: Session, name: TargetName) -> None:
    """Suspend a run or a sweep, or stop a schedule from creating runs.

    The pods of a run save a checkpoint and end. `finetune resume` continues from it.
    """
    from finetune_operator.client import check_active

    target = parse_target(name)
    if target.kind == JOB:
        session.client.suspend(target.name)
    else:
        check_active(target.get_resource(session).get(target.name))
        target.get_resource(session).patch_spec(target.name, {"suspend": True})
    _print_request(session, target, "suspended", "saves a checkpoint and ends its pods")


def resume(session: Session, name: TargetName) -> None:
    """Resume a suspended run, schedule or sweep."""
    from finetune_operator.client import check_resumable

    target = parse_target(name)
    if target.kind == JOB:
        session.client.resume(target.name)
    else:
        check_resumable(target.get_resource(session).get(target.name))
        target.get_resource(session).patch_spec(target.name, {"suspend": False})
    _print_request(session, target, "resumed", "continues from its last checkpoint")


def cancel(
    session: Session,
    name: TargetName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for a confirmation.")] = False,
) -> None:
    """Cancel a run or a sweep for good: nothing is published, and it cannot be undone. Results of a sweep's complete
    trials stay."""
    from finetune_operator.client import check_active

    target = parse_target(name)
    if target.kind == SCHEDULE:
        raise CommandError("a schedule cannot be cancelled: suspend it, or delete it with kubectl", EXIT_USAGE)
    check_active(target.get_resource(session).get(target.name))
    question = f"Cancel {target} in namespace {session.client.namespace} for good?"
    if not yes and not session.terminal.confirm(question):
        raise CommandError(f"{target} continues", EXIT_FAILURE)
    if target.kind == JOB:
        session.client.cancel(target.name)
    else:
        target.get_resource(session).patch_spec(target.name, {"cancel": True})
    _print_request(session, target, "cancelled", "ends its pods")


def _print_request(session: Session, target: Target, action: str, consequence: str) -> None:
    if session.terminal.prints_data:
        session.terminal.print_data(
            {"kind": target.kind, "namespace": session.client.namespace, "name": target.name, "requested": action}
        )
        return
    suffix = f": it {consequence}" if target.kind == JOB else ""
    session.terminal.print_line(f"{target} {action}{suffix}")
