"""Runs the tasks of a FineTuneSchedule or a FineTuneSweep in task pods, and reads their outcomes."""

from __future__ import annotations

import logging
from typing import NamedTuple

from finetune_operator.api import FineTuneJob
from finetune_operator.api.objects import Body
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.run_control import REFUSED_STATUSES
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed.job import get_job_finished_at
from finetune_operator.observed.objects import find_true_condition, is_controlled_by, is_finished
from finetune_operator.observed.task import read_task_outcome
from finetune_operator.policy.profiles import ChosenProfile, Profiles
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources.task_job import Task, build_task_job, get_task_storage
from finetune_operator.settings import Settings
from finetune_trainer.contract import Reason, TaskOutcome

log = logging.getLogger(__name__)

TASK_CHECK_SECONDS = 2.0
"""Seconds until the Job of an unfinished task is read again. No watch reports it."""


class TaskState(NamedTuple):
    """The state of a task. It is pending if it has neither an outcome nor an error."""

    outcome: TaskOutcome | None = None
    """The outcome of a task that has done its work."""
    error: str = ""
    """Why the task has failed or cannot be started. Its Job is created again when its time to live has passed."""
    reason: Reason | None = None
    """The reason of a task that has failed, if it has reported one."""
    end_time: str | None = None
    """When the Job has ended (RFC 3339). It is unset without a Job that has."""

    @property
    def is_pending(self) -> bool:
        """Whether the task has not ended."""
        return self.outcome is None and not self.error


class TaskRunner:
    """Creates the Jobs of tasks. A Job is found again by its name, so nothing is stored about it."""

    def __init__(self, client: KubeClient, settings: Settings, profile_store: ProfileStore) -> None:
        self._client = client
        self._settings = settings
        self._profile_store = profile_store

    async def run(self, task: Task, finetunejob: FineTuneJob) -> TaskState:
        """Create the Job of a task if there is none, and return its state.

        `finetunejob` has the access to S3. `task.config.storage` is replaced by its storage.

        Raises `ApiError` or one of `CONNECTION_ERRORS` if a retry may help.
        """
        profiles = self._profile_store.read()
        if violations := find_violations(finetunejob, self._settings, profiles):
            return TaskState(error=" ".join(violations))
        storage = get_task_storage(finetunejob, self._settings)
        task = task._replace(config=task.config.model_copy(update={"storage": storage}))
        desired = build_task_job(task, finetunejob, self._settings, choose_profile(finetunejob, profiles))
        job = await self._client.read_job(finetunejob.metadata.namespace, desired["metadata"]["name"])
        if job is None:
            return await self._create(desired)
        if task.owner_reference and not is_controlled_by(job, task.owner_reference["uid"]):
            return TaskState(error=f"Job {job['metadata']['name']} belongs to another object; delete it.")
        return await self._read_state(job) if is_finished(job) else TaskState()

    async def _create(self, desired: Body) -> TaskState:
        try:
            await self._client.create_job(desired)
        except ApiError as error:
            if error.status in REFUSED_STATUSES:
                return TaskState(error=error.message)
            if error.status != 409:
                raise
        else:
            log.info("created the Job %s", desired["metadata"]["name"])
        return TaskState()

    async def _read_state(self, job: Body) -> TaskState:
        name, outcome = job["metadata"]["name"], read_task_outcome(await self._client.list_job_pods(job))
        end_time = get_job_finished_at(job)
        if outcome is None:
            return TaskState(error=f"Job {name} ended without an outcome; see its pods.", end_time=end_time)
        if outcome.reason is not Reason.COMPLETED or find_true_condition(job, "Complete") is None:
            return TaskState(error=f"{outcome.reason}: {outcome.message}", reason=outcome.reason, end_time=end_time)
        return TaskState(outcome=outcome, end_time=end_time)


def choose_profile(finetunejob: FineTuneJob, profiles: Profiles) -> ChosenProfile | None:
    """Return the compute profile, or None if there is none or if it does not exist any more."""
    try:
        return profiles.choose(finetunejob.spec.compute.profile, finetunejob.metadata.namespace)
    except KeyError:
        return None
