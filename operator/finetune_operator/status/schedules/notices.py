"""The Events about a changed status of a FineTuneSchedule."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_operator.api import Condition
from finetune_operator.api.schedule import FineTuneScheduleStatus, ScheduleConditionType, ScheduleReason
from finetune_operator.status.events import EventContent

_SILENT_REASONS = frozenset(
    {
        ScheduleReason.ACTIVE,
        ScheduleReason.SUSPENDED,
        ScheduleReason.NO_RUN,
        ScheduleReason.RUN_ACTIVE,  # the Event RunCreated says it
        ScheduleReason.INPUTS_UNKNOWN,
        ScheduleReason.PROMOTING,
        # The Event NotPromoted has these decisions.
        ScheduleReason.AWAITING_APPROVAL,
        ScheduleReason.NOT_BETTER,
        ScheduleReason.NOT_MEASURED,
        ScheduleReason.VETOED,
        ScheduleReason.NOT_COMPARABLE,
        ScheduleReason.HELD_OUT_ROWS_CHANGED,
        ScheduleReason.CHAMPION_CHANGED,
    }
)
_WARNING_REASONS = frozenset(
    {
        ScheduleReason.RUN_FAILED,
        ScheduleReason.CHECK_FAILED,
        ScheduleReason.PROMOTION_FAILED,
        ScheduleReason.ALIAS_CONFLICT,
    }
)
_REPORTED_TYPES = (ScheduleConditionType.STALLED, ScheduleConditionType.UP_TO_DATE, ScheduleConditionType.PROMOTED)


def list_condition_events(old: FineTuneScheduleStatus, new: FineTuneScheduleStatus) -> Iterator[EventContent]:
    """Yield an Event for each condition whose status or reason has changed to one that users should know, and for each
    new champion."""
    old_conditions = {condition.type: condition for condition in old.conditions}
    for condition in new.conditions:
        before = old_conditions.get(condition.type)
        is_changed = before is None or _get_state(before) != _get_state(condition)
        if is_changed and condition.type in _REPORTED_TYPES and condition.reason not in _SILENT_REASONS:
            event_type = "Warning" if _is_warning(condition) else "Normal"
            yield EventContent(event_type, condition.reason, condition.message)


def _is_warning(condition: Condition) -> bool:
    is_stalled = condition.type == ScheduleConditionType.STALLED and condition.status == "True"
    return is_stalled or condition.reason in _WARNING_REASONS


def _get_state(condition: Condition) -> tuple[str, str, str]:
    """Return what an Event is about. The message of a run that was promoted names the champion."""
    is_champion = condition.type == ScheduleConditionType.PROMOTED and condition.status == "True"
    return condition.status, condition.reason, condition.message if is_champion else ""
