"""`finetune promote` and `finetune rollback`: set the champion of a FineTuneSchedule."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from finetune_cli import views
from finetune_cli.errors import CommandError
from finetune_cli.exit_statuses import EXIT_TIMEOUT
from finetune_cli.gitops import warn_of_gitops
from finetune_cli.session import Session

if TYPE_CHECKING:
    from finetune_operator.api.schedule import FineTuneSchedule, FineTuneScheduleStatus

_POLL_SECONDS = 1.0
_COMPLETE = "Complete"


@dataclass(frozen=True)
class PromotionOptions:
    """Whether the command asks and waits."""

    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the alias names the run.")] = False
    timeout: Annotated[int, typer.Option(min=1, help="Seconds to wait.")] = 600


def promote_run(
    session: Session,
    schedule: Annotated[str, typer.Argument(help="Name of a FineTuneSchedule.")],
    run: Annotated[str, typer.Argument(help="Name of a complete run, or of an earlier champion.")],
    options: PromotionOptions,
) -> None:
    """Make a run the champion of a schedule, by setting spec.champion.run. Servers that follow the alias load it."""
    status = _read_status(session, schedule)
    _check_run(session, status, schedule, run)
    _set_champion(session, schedule, run, options)


def roll_back(
    session: Session,
    schedule: Annotated[str, typer.Argument(help="Name of a FineTuneSchedule.")],
    options: PromotionOptions,
) -> None:
    """Make the champion before the current one the champion again, by setting spec.champion.run."""
    status = _read_status(session, schedule)
    current = status.champion.run if status.champion else None
    earlier = next((champion.run for champion in status.champions if champion.run != current), None)
    if earlier is None:
        raise CommandError(f"schedule {schedule} has had no champion before {current or 'the first run'}")
    _set_champion(session, schedule, earlier, options)


def _read_status(session: Session, name: str) -> FineTuneScheduleStatus:
    from finetune_operator.api.schedule import FineTuneScheduleStatus

    return session.client.schedules.get(name).status or FineTuneScheduleStatus()


def _check_run(session: Session, status: FineTuneScheduleStatus, schedule: str, run: str) -> None:
    """Raise `CommandError` unless the run has a result that the schedule can promote."""
    from finetune_operator.client.errors import ObjectNotFound

    if any(champion.run == run for champion in status.champions):
        return
    scheduled = next((each for each in status.runs if each.name == run), None)
    if scheduled:
        _require_complete(run, scheduled.phase or "active")
        return
    try:
        job = session.client.jobs.get(run)
    except ObjectNotFound:
        known = ", ".join(each.name for each in status.runs if each.phase == _COMPLETE) or "none"
        message = f"{run} is neither a run of schedule {schedule} nor another run of the namespace"
        raise CommandError(f"{message}; complete runs of the schedule: {known}") from None
    phase = job.status.phase if job.status else None
    _require_complete(run, phase or "Pending")
    session.terminal.print_note(f"run {run} was not created by schedule {schedule}")


def _require_complete(run: str, phase: str) -> None:
    if phase != _COMPLETE:
        raise CommandError(f"run {run} has no result to promote: its phase is {phase}")


def _set_champion(session: Session, name: str, run: str, options: PromotionOptions) -> None:
    body = session.client.schedules.get_body(name)
    current = body.get("status", {}).get("champion", {}).get("run", "none")
    warn_of_gitops(session, "schedule", name, body, f"spec.champion.run: {run}")
    question = f"schedule {name}: replace champion {current} by {run} and pin it?"
    if not options.yes and not session.terminal.confirm(question):
        raise CommandError("not changed")
    changed = session.client.schedules.patch_spec(name, {"champion": {"run": run}})
    session.terminal.print_line(f"schedule {name}: spec.champion.run is {run}")
    if options.wait:
        _wait_for_champion(session, changed, run, options.timeout)
        session.terminal.print_line(f"schedule {name}: the champion is {run}")
    session.terminal.print_note("no run is promoted by the rules until spec.champion is removed")


def _wait_for_champion(session: Session, schedule: FineTuneSchedule, run: str, timeout_seconds: int) -> None:
    """Wait until the status has the champion, which it has when the alias names it. Raises `CommandError`."""
    name, generation = schedule.metadata.name, schedule.metadata.generation
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        status = _read_status(session, name)
        if (status.observed_generation or 0) >= generation:
            _raise_failure(name, run, status, generation)
            if status.promoting is None and status.champion and status.champion.run == run:
                return
        time.sleep(_POLL_SECONDS)
    message = f"schedule {name}: {run} is not the champion after {timeout_seconds} s; the operator keeps trying"
    raise CommandError(message, EXIT_TIMEOUT)


def _raise_failure(name: str, run: str, status: FineTuneScheduleStatus, generation: int) -> None:
    stalled = views.find_condition(status.conditions, "Stalled")
    if stalled and stalled.status == "True":
        raise CommandError(f"schedule {name}: {run} is not promoted: {stalled.reason}: {stalled.message}")
    promoting = status.promoting
    if promoting and promoting.champion.run == run and promoting.failure and promoting.generation >= generation:
        raise CommandError(f"schedule {name}: the alias is not written: {promoting.failure}: {promoting.message}")
