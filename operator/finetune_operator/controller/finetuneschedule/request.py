"""The input of one reconcile: a stored FineTuneSchedule, parsed, its FineTuneJobs, and the current time."""

from __future__ import annotations

from typing import NamedTuple

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.api.schedule import FineTuneSchedule


class ScheduleRequest(NamedTuple):
    """One FineTuneSchedule as it is stored, and the time of the reconcile."""

    key: ObjectKey
    body: Body
    schedule: FineTuneSchedule
    children: tuple[Body, ...]
    """The FineTuneJobs that it owns, as they are cached: without their results."""
    now: str
    """The current time (RFC 3339). All steps of a reconcile use the same one."""
