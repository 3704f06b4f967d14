"""The conditions of a FineTuneSchedule. Only this module builds them, except `Promoted`, which the promotion builds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from finetune_operator.api import Condition
from finetune_operator.api.schedule import (
    FineTuneSchedule,
    FineTuneScheduleStatus,
    ScheduleConditionType,
    ScheduledRun,
    ScheduleReason,
)
from finetune_operator.status.schedules.runs import compute_template_hash, describe_failure, find_last_complete_run

MESSAGE_MAX_LENGTH = 4096


class Stall(NamedTuple):
    """Why a schedule is stalled until a user corrects something."""

    reason: ScheduleReason
    message: str


class Verdict(NamedTuple):
    """The value of a condition."""

    status: Literal["True", "False", "Unknown"]
    reason: ScheduleReason
    message: str = ""


def build_conditions(
    schedule: FineTuneSchedule, status: FineTuneScheduleStatus, stall: Stall | None, now: str
) -> list[Condition]:
    """Return all conditions, `Stalled` first. `Promoted` is that of `status`, or Unknown before the first decision."""
    verdicts = {
        ScheduleConditionType.STALLED: Verdict("True", *stall) if stall else _build_state(schedule, "False"),
        ScheduleConditionType.RECONCILING: _build_state(schedule, "False"),
        ScheduleConditionType.SUSPENDED: _build_state(schedule, "True" if schedule.spec.suspend else "False"),
        ScheduleConditionType.UP_TO_DATE: _judge_up_to_date(schedule, status),
    }
    known = {condition.type: condition for condition in status.conditions}
    promoted = known.get(ScheduleConditionType.PROMOTED)
    if promoted is None:
        verdicts[ScheduleConditionType.PROMOTED] = Verdict(
            "Unknown", ScheduleReason.NO_RUN, "There is no complete run yet."
        )
    generation = schedule.metadata.generation
    conditions = [
        _build_condition(condition_type, verdict, known.get(condition_type), generation, now)
        for condition_type, verdict in verdicts.items()
    ]
    return [*conditions, *([promoted] if promoted else [])]


def build_invalid_conditions(
    conditions: Iterable[Condition], message: str, generation: int, now: str
) -> list[Condition]:
    """Return the conditions of a schedule whose spec this version cannot read. The others stay as they are."""
    others = [condition for condition in conditions if condition.type != ScheduleConditionType.STALLED]
    old = next((condition for condition in conditions if condition.type == ScheduleConditionType.STALLED), None)
    verdict = Verdict("True", ScheduleReason.INVALID_TEMPLATE, message)
    return [_build_condition(ScheduleConditionType.STALLED, verdict, old, generation, now), *others]


def _build_condition(
    condition_type: ScheduleConditionType, verdict: Verdict, old: Condition | None, generation: int, now: str
) -> Condition:
    return Condition(
        type=condition_type,
        status=verdict.status,
        observed_generation=generation,
        last_transition_time=old.last_transition_time if old and old.status == verdict.status else now,
        reason=verdict.reason,
        message=verdict.message[:MESSAGE_MAX_LENGTH],
    )


def _build_state(schedule: FineTuneSchedule, status: Literal["True", "False"]) -> Verdict:
    if schedule.spec.suspend:
        return Verdict(status, ScheduleReason.SUSPENDED, "spec.suspend is set; no runs are created.")
    return Verdict(status, ScheduleReason.ACTIVE, "Runs are created.")


def _judge_up_to_date(schedule: FineTuneSchedule, status: FineTuneScheduleStatus) -> Verdict:
    last, newest = find_last_complete_run(status), next(iter(status.runs), None)
    if last is None:
        return _describe_newer_run(newest) or Verdict("False", ScheduleReason.NO_RUN, "There is no complete run yet.")
    verdict = _compare_with_last(schedule, status, last)
    newer = newest if newest != last else None
    return (_describe_newer_run(newer) or verdict) if verdict.status == "False" else verdict


def _describe_newer_run(run: ScheduledRun | None) -> Verdict | None:
    """Return what a run after the last complete one means for a result that is not up to date."""
    if run is None:
        return None
    if run.phase is None:
        return Verdict("False", ScheduleReason.RUN_ACTIVE, f"Run {run.name} is under way.")
    return Verdict("False", ScheduleReason.RUN_FAILED, f"The last run is {run.name}. {describe_failure(run)}")


def _compare_with_last(schedule: FineTuneSchedule, status: FineTuneScheduleStatus, last: ScheduledRun) -> Verdict:
    check = status.inputs
    if last.template_hash != compute_template_hash(schedule.spec):
        message = f"spec.template or spec.startFrom has changed since run {last.name}."
        return Verdict("False", ScheduleReason.TEMPLATE_CHANGED, message)
    if check is None or check.run != last.name:
        message = f"The inputs have not been checked since run {last.name}."
        return Verdict("Unknown", ScheduleReason.INPUTS_UNKNOWN, message)
    if check.digest is None:
        return Verdict("Unknown", ScheduleReason.CHECK_FAILED, check.message)
    if check.unchanged:
        return Verdict("True", ScheduleReason.TRAINED, check.message)
    return Verdict("False", ScheduleReason.INPUTS_CHANGED, check.message)
