"""The input of one reconcile: a stored FineTuneSchedule, parsed, its FineTuneJobs, and the current time."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.schedule import FineTuneSchedule, FineTuneScheduleStatus
from finetune_operator.status.schedules.times import find_time, format_time


class ScheduleRequest(NamedTuple):
    """One FineTuneSchedule as it is stored, and the time of the reconcile."""

    key: ObjectKey
    body: Body
    schedule: FineTuneSchedule
    """Its status is set, and empty before the first reconcile."""
    children: tuple[Body, ...]
    """The FineTuneJobs that it owns, as they are cached: without their results."""
    now: str
    """The current time (RFC 3339). All steps of a reconcile use the same one."""

    @property
    def stored_status(self) -> FineTuneScheduleStatus:
        """The status as it is stored."""
        return self.schedule.status or FineTuneScheduleStatus()

    def with_status(self, status: FineTuneScheduleStatus) -> FineTuneSchedule:
        """Return the schedule with a status that is not stored yet, to build its FineTuneJobs from."""
        return self.schedule.model_copy(update={"status": status})


def build_request(key: ObjectKey, body: Body, children: Iterable[Body], now: datetime) -> ScheduleRequest:
    """Parse what a reconcile needs. Raises `pydantic.ValidationError` if this version cannot read the schedule."""
    status = read_status(body)
    schedule = FineTuneSchedule.model_validate({**body, "status": None}).model_copy(update={"status": status})
    return ScheduleRequest(key, body, schedule, tuple(children), format_time(now))


def read_status(body: Body) -> FineTuneScheduleStatus:
    """Return the stored status without fields that this version does not know.

    Raises `pydantic.ValidationError` for values that it does not know.
    """
    return FineTuneScheduleStatus.model_validate(body.get("status") or {}, extra="ignore")


def find_invalid_time(status: FineTuneScheduleStatus) -> str | None:
    """Return what is wrong with a time in the status, which somebody has edited by hand, or None."""
    times = {"lastScheduleTime": status.last_schedule_time}
    times |= {"inputs.time": status.inputs.time} if status.inputs else {}
    for index, run in enumerate(status.runs):
        times[f"runs[{index}].scheduledTime"] = run.scheduled_time
        times[f"runs[{index}].completionTime"] = run.completion_time
    wrong = (path for path, text in times.items() if text is not None and find_time(text) is None)
    return next(
        (f"status.{path}: '{times[path]}' is not a time; write it as 2026-11-23T08:00:00Z." for path in wrong), None
    )
