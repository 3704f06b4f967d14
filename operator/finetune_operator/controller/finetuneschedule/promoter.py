"""Decides which run of a FineTuneSchedule is the champion, and has the alias and the report written."""

from __future__ import annotations

from typing import NamedTuple

from finetune_operator.api.schedule import FineTuneScheduleStatus, ScheduleReason
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.run_control import RunControl
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.status.events import EventContent


class PromotionResult(NamedTuple):
    """The status with the decisions, and when they are to be looked at again."""

    status: FineTuneScheduleStatus
    requeue_after: float | None = None
    """Seconds until the next reconcile, or None if only events need one."""
    stalled: tuple[ScheduleReason, str] | None = None
    """Reason and message of the condition Stalled, if a person must correct `spec.champion`."""
    events: tuple[EventContent, ...] = ()
    """Events to record once the status is stored. The condition Promoted has its own."""


class Promoter:
    """Decides about complete runs. It changes the fields of the status that concern champions, and no other ones."""

    def __init__(self, run_control: RunControl, task_runner: TaskRunner) -> None:
        self._run_control = run_control
        self._task_runner = task_runner

    async def promote(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> PromotionResult:
        """Decide about the runs that have completed. Each call does one step, and its status must be stored before the
        next call."""
        return PromotionResult(status)
