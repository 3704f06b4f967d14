"""Checks that a request for an object can have an effect. The API server accepts a change of one that has ended."""

from __future__ import annotations

from finetune_operator.api import ConditionType, FineTuneJob, OperatorReason
from finetune_operator.api.schedule import FineTuneSchedule
from finetune_operator.api.status import Condition
from finetune_operator.api.sweep import FineTuneSweep
from finetune_operator.client.errors import InvalidState

_TERMINAL_CONDITIONS = (ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.CANCELLED)
_BUDGET_REASON = OperatorReason.BUDGET_EXHAUSTED


def check_active(target: FineTuneJob | FineTuneSchedule | FineTuneSweep) -> None:
    """Raise `InvalidState` if a run or a sweep has ended. A schedule never ends."""
    conditions = _list_true_conditions(target)
    for condition_type in _TERMINAL_CONDITIONS:
        if condition_type in conditions:
            raise InvalidState(f"{_describe(target)} has ended: it is {condition_type.value}")


def check_resumable(target: FineTuneJob | FineTuneSchedule | FineTuneSweep) -> None:
    """Raise `InvalidState` if the object has ended, is not suspended, or has used up its budget."""
    check_active(target)
    suspended = _list_true_conditions(target).get(ConditionType.SUSPENDED)
    if not target.spec.suspend and suspended is None:
        raise InvalidState(f"{_describe(target)} is not suspended")
    if not target.spec.suspend and suspended is not None and suspended.reason == _BUDGET_REASON:
        raise InvalidState(f"{_describe(target)} has exhausted its budget: raise spec.budget, which resumes it")


def _describe(target: FineTuneJob | FineTuneSchedule | FineTuneSweep) -> str:
    return f"{type(target).__name__} {target.metadata.name}"


def _list_true_conditions(target: FineTuneJob | FineTuneSchedule | FineTuneSweep) -> dict[str, Condition]:
    conditions = target.status.conditions if target.status else []
    return {condition.type: condition for condition in conditions if condition.status == "True"}
