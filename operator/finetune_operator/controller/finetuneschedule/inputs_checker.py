"""Checks in task pods whether the inputs of a FineTuneSchedule have changed. The operator has no keys of S3."""

from __future__ import annotations

from finetune_operator.api.schedule import FineTuneScheduleStatus, InputsCheck, ScheduledRun
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.task_runner import TaskRunner
from finetune_operator.resources.inputs_task import build_inputs_task
from finetune_operator.resources.scheduled_run import build_template_run
from finetune_operator.settings import Settings
from finetune_operator.status.schedules.inputs import build_check, build_failed_check
from finetune_operator.status.schedules.runs import compute_template_hash, find_last_complete_run


class InputsChecker:
    """Compares the inputs of the template with those of the last complete run."""

    def __init__(self, task_runner: TaskRunner, settings: Settings) -> None:
        self._task_runner = task_runner
        self._settings = settings

    async def check_slot(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, slot: str
    ) -> InputsCheck | None:
        """Return the check before the run of a time of `spec.schedule`, or None while it runs."""
        return await self._check(request, status, f"slot/{slot}")

    async def check_periodically(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> InputsCheck | None:
        """Return the check that follows the last stored one, or None while it runs.

        Its Job is named after the last check, so that a restarted operator finds it, however long it takes.
        """
        last_time = status.inputs.time if status.inputs else ""
        return await self._check(request, status, f"after/{last_time}")

    async def _check(
        self, request: ScheduleRequest, status: FineTuneScheduleStatus, occasion: str
    ) -> InputsCheck | None:
        last = find_last_complete_run(status)
        if last is None:
            raise ValueError("there is no complete run to compare the inputs with")
        identity = _build_identity(request, last, occasion)
        next_run = build_template_run(request.schedule)
        task = build_inputs_task(request.schedule, next_run, last, identity, self._settings)
        state = await self._task_runner.run(task, next_run)
        if state.is_pending:
            return None
        if state.outcome and state.outcome.inputs:
            return build_check(last, state.outcome.inputs, request.now)
        message = state.error or "The task has reported no inputs; its image is of another version."
        return build_failed_check(last, message, request.now)


def _build_identity(request: ScheduleRequest, last: ScheduledRun, occasion: str) -> str:
    """Return what distinguishes the Job. Another template may have other inputs."""
    return "/".join((last.name, last.digest or "", compute_template_hash(request.schedule.spec), occasion))
