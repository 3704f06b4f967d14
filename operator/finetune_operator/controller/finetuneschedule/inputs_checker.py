"""Checks in task pods whether the inputs of a FineTuneSchedule have changed. The operator has no keys of S3."""

from __future__ import annotations

from finetune_operator.api.schedule import FineTuneScheduleStatus, InputsCheck, ScheduledRun
from finetune_operator.controller.finetuneschedule.request import ScheduleRequest
from finetune_operator.controller.finetuneschedule.step import AT_ONCE, Step
from finetune_operator.controller.task_runner import TASK_CHECK_SECONDS, TaskRunner, TaskState
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

    async def check(self, request: ScheduleRequest, status: FineTuneScheduleStatus) -> Step:
        """Start the check that follows the last stored one, or return its result in the status.

        Its Job is named after the last check, so that a restarted operator finds it, and it is waited for however long
        it takes. The result has the time of its end: one that nobody has read in time is repeated.
        """
        last = find_last_complete_run(status)
        if last is None:
            raise ValueError("there is no complete run to compare the inputs with")
        next_run = build_template_run(request.schedule)
        identity = _build_identity(request, status, last)
        task = build_inputs_task(request.schedule, next_run, last, identity, self._settings)
        state = await self._task_runner.run(task, next_run)
        if state.is_pending:
            return Step(status, TASK_CHECK_SECONDS)
        return Step(status.model_copy(update={"inputs": _read_state(state, last, request.now)}), AT_ONCE)


def _read_state(state: TaskState, last: ScheduledRun, now: str) -> InputsCheck:
    time = state.end_time or now
    if state.outcome and state.outcome.inputs:
        return build_check(last, state.outcome.inputs, time)
    return build_failed_check(
        last, state.error or "The task has reported no inputs; its image is of another version.", time
    )


def _build_identity(request: ScheduleRequest, status: FineTuneScheduleStatus, last: ScheduledRun) -> str:
    """Return what distinguishes the Job: another template may have other inputs."""
    last_time = status.inputs.time if status.inputs else ""
    return "/".join((last.name, last.digest or "", compute_template_hash(request.schedule.spec), last_time))
