"""The condition Promoted of a FineTuneSchedule."""

from __future__ import annotations

from typing import Literal, NamedTuple

from finetune_operator.api.schedule import (
    FineTuneSchedule,
    FineTuneScheduleStatus,
    PendingPromotion,
    ScheduleConditionType,
    ScheduledRun,
    ScheduleReason,
)
from finetune_operator.api.status import Condition, Phase
from finetune_operator.observed.objects import parse_timestamp


class _State(NamedTuple):
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str


def update_promoted_condition(
    schedule: FineTuneSchedule, status: FineTuneScheduleStatus, now: str
) -> FineTuneScheduleStatus:
    """Return the status with the condition Promoted, at its place or at the end. Other conditions stay as they are."""
    state = _compute_state(status)
    old = next((each for each in status.conditions if each.type == ScheduleConditionType.PROMOTED), None)
    new = Condition(
        type=ScheduleConditionType.PROMOTED.value,
        status=state.status,
        observed_generation=schedule.metadata.generation,
        last_transition_time=old.last_transition_time if old and old.status == state.status else now,
        reason=state.reason,
        message=state.message,
    )
    conditions = [new if each is old else each for each in status.conditions]
    return status.model_copy(update={"conditions": conditions if old else [*conditions, new]})


def _compute_state(status: FineTuneScheduleStatus) -> _State:
    if status.promoting:
        return _describe_promotion(status.promoting)
    decided = [run for run in status.runs if run.phase == Phase.COMPLETE and run.decision]
    last = max(decided, key=lambda run: (parse_timestamp(run.completion_time) or 0.0, run.name), default=None)
    if last is None:
        return _State("Unknown", ScheduleReason.NO_RUN.value, "There is no complete run yet.")
    return _describe_run(status, last)


def _describe_promotion(pending: PendingPromotion) -> _State:
    text = f"the alias {pending.alias_uri} to {pending.champion.run}"
    if pending.failure is None:
        return _State("Unknown", ScheduleReason.PROMOTING.value, f"A task changes {text}.")
    message = f"A task could not change {text}, and tries it again once an hour: {pending.message}"
    if pending.failure == ScheduleReason.ALIAS_CONFLICT:
        message += " Set spec.champion.run to replace the object, or set another spec.alias.uri."
    return _State("False", pending.failure, message)


def _describe_run(status: FineTuneScheduleStatus, run: ScheduledRun) -> _State:
    """Return whether the last complete run is the champion, or why not."""
    champion, decision = status.champion, run.decision or ""
    if champion and (champion.run, champion.digest) == (run.name, run.digest):
        return _State("True", champion.reason, f"{run.name} is the champion. {run.message}")
    if champion and decision == ScheduleReason.PROMOTED:
        return _State("False", champion.reason, f"The champion is {champion.run}, which was set after {run.name}.")
    return _State("False", decision, f"{run.name} is not the champion. {run.message}")
