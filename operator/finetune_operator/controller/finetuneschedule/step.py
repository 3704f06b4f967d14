"""The result of one step of a reconcile."""

from __future__ import annotations

from typing import NamedTuple

from finetune_operator.api.schedule import FineTuneScheduleStatus
from finetune_operator.status.events import EventContent
from finetune_operator.status.schedules.conditions import Stall

AT_ONCE = 0.0


class Step(NamedTuple):
    """The status to store, and what follows it."""

    status: FineTuneScheduleStatus
    requeue_after: float | None = None
    """Seconds until the next step, `AT_ONCE` if it only waits for the status to be stored, or None."""
    events: tuple[EventContent, ...] = ()
    """Events to record once the status is stored."""
    stall: Stall | None = None
    """Why the schedule is stalled until a user corrects something."""
