"""What a FineTuneSchedule creates its next run for, and when it looks again.

A request (`spec.runAt`) comes before a time of `spec.schedule`, and that before a change of the data. A change of the
data waits until no run is active, whatever `spec.concurrencyPolicy` is, because that run may have the change already.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from finetune_operator.api.schedule import FineTuneScheduleSpec, FineTuneScheduleStatus, OnDataChange, Trigger
from finetune_operator.status.schedules.inputs import compute_next_check_time
from finetune_operator.status.schedules.runs import COMPLETE_PHASE, find_last_complete_run, find_pending_run
from finetune_operator.status.schedules.slots import Timetable
from finetune_operator.status.schedules.times import find_time, format_time, get_minute, parse_time


class Due(NamedTuple):
    """A run that is due."""

    trigger: Trigger
    time: datetime
    """The scheduled time of the run."""
    slot: datetime | None = None
    """The time of `spec.schedule` that it is for."""
    run_at: str | None = None
    """The value of `spec.runAt` that it is for."""


def find_due_run(
    spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus, slot: datetime | None, now: datetime
) -> Due | None:
    """Return the run that is due, or None. `slot` is the time of `spec.schedule` that is due.

    A request and a slot of the same minute are one run. Other requests and data changes are scheduled for now.
    """
    requested_time = _find_requested_time(spec, status)
    if requested_time and requested_time <= now:
        if slot and get_minute(slot) == get_minute(requested_time):
            return Due(Trigger.REQUEST, slot, slot, spec.run_at)
        return Due(Trigger.REQUEST, now, run_at=spec.run_at)
    if slot:
        return Due(Trigger.SCHEDULE, slot, slot)
    return Due(Trigger.DATA_CHANGE, now) if _is_data_change_due(spec, status, now) else None


def mark_handled(status: FineTuneScheduleStatus, due: Due) -> FineTuneScheduleStatus:
    """Return the status that remembers what a run was created or skipped for, so that it never fires again."""
    changes = {
        **({"last_schedule_time": format_time(due.slot)} if due.slot else {}),
        **({"last_run_at": due.run_at} if due.run_at else {}),
    }
    return status.model_copy(update=changes)


def _is_data_change_due(spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus, now: datetime) -> bool:
    if spec.on_data_change is None or find_pending_run(status) or not has_data_changed(spec.on_data_change, status):
        return False
    earliest = compute_data_change_time(spec.on_data_change, status)
    return earliest is None or earliest <= now


def has_data_changed(on_data_change: OnDataChange, status: FineTuneScheduleStatus) -> bool:
    """Return whether the inputs differ from those of the last complete run by enough for a run, or there is none.

    Another template is no change of the data.
    """
    last, check = find_last_complete_run(status), status.inputs
    if last is None:
        return True
    if check is None or check.run != last.name or check.digest is None or check.unchanged:
        return False
    is_enough = check.added_bytes >= on_data_change.min_added_bytes
    return check.model_changed or check.removed_files > 0 or is_enough


def compute_data_change_time(on_data_change: OnDataChange, status: FineTuneScheduleStatus) -> datetime | None:
    """Return the earliest time of a run for a data change, or None if any time is right.

    A run that has not completed is repeated after `checkIntervalSeconds` at the earliest, so that a run which fails at
    once is not repeated without a pause.
    """
    if not status.runs:
        return None
    newest, seconds = status.runs[0], on_data_change.min_interval_seconds
    if newest.phase != COMPLETE_PHASE:
        seconds = max(seconds, on_data_change.check_interval_seconds)
    return parse_time(newest.scheduled_time) + timedelta(seconds=seconds)


def compute_next_time(
    spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus, timetable: Timetable | None, now: datetime
) -> datetime | None:
    """Return when a trigger may fire next or a check is due, or None. The end of a run is reported by a watch."""
    if spec.suspend:
        return None
    times = [_find_requested_time(spec, status), timetable.find_next(now) if timetable else None]
    if spec.on_data_change:
        times.append(compute_next_check_time(spec.on_data_change, status))
        if has_data_changed(spec.on_data_change, status):
            times.append(compute_data_change_time(spec.on_data_change, status))
    return min((time for time in times if time and time > now), default=None)


def _find_requested_time(spec: FineTuneScheduleSpec, status: FineTuneScheduleStatus) -> datetime | None:
    """Return the time of a request that no run was created for, or None."""
    return find_time(spec.run_at) if spec.run_at != status.last_run_at else None
