"""Clean the checkpoints of runs that have failed, were cancelled or were deleted, with Jobs of task pods.

A FineTuneJob that exists owns its Job, which is created after the retention. For a deleted one a suspended Job without
an owner is the record that something is to be cleaned: the operator stores nothing else, and may restart at any time.
"""

from __future__ import annotations

import logging
from datetime import UTC, timedelta

from pydantic import ValidationError

from finetune_operator.api import EventReason, FineTuneJob, FineTuneJobStatus
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.finetunejob.request import TIME_FORMAT, ReconcileRequest
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.run_control import REFUSED_STATUSES
from finetune_operator.controller.task_runner import choose_profile
from finetune_operator.kube.client import FINETUNEJOBS, KubeClient
from finetune_operator.kube.finetunejob_cache import DeletedRun, FineTuneJobCache, get_finetunejob_key
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.cleaning import (
    CLEANED_TIME_FIELD,
    find_live_run,
    get_expanded_output_uri,
    may_have_checkpoints,
)
from finetune_operator.observed.objects import find_true_condition, is_finished
from finetune_operator.observed.task import read_task_outcome
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources.task_job import build_clean_job
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines, events
from finetune_trainer.contract import Reason

log = logging.getLogger(__name__)

_CHECK_SECONDS = 30.0
"""Seconds until an unfinished Job is read again."""


class CheckpointCleaner:
    """Creates the Jobs that clean, and records their results."""

    def __init__(
        self, cache: FineTuneJobCache, client: KubeClient, settings: Settings, profile_store: ProfileStore
    ) -> None:
        self._cache = cache
        self._client = client
        self._settings = settings
        self._profile_store = profile_store

    async def clean_ended_run(self, request: ReconcileRequest, status: FineTuneJobStatus) -> float | None:
        """Clean a failed or cancelled run whose retention has passed. Return the seconds until the next reconcile."""
        due_time = deadlines.compute_cleaning_time(status, self._settings.checkpoint_retention_seconds)
        if not may_have_checkpoints({**request.body, "status": status.to_json()}) or not deadlines.has_passed(
            due_time, request.now
        ):
            return None
        if find_live_run(self._cache.finetunejobs, get_expanded_output_uri(request.body)):
            return None  # it may resume from them, and deletes them itself
        desired = self._build_job(request.body)
        if isinstance(desired, str):
            await self._record_event(request, EventReason.CLEANING_FAILED, desired)
            return None
        job = await self._client.read_job(request.key.namespace, desired["metadata"]["name"])
        if job is None:
            return await self._create_job(request, desired)
        if not is_finished(job):
            return _CHECK_SECONDS
        await self._record_end(request, job)
        return None

    async def record_deleted_runs(self, key: ObjectKey) -> None:
        """Create a suspended Job for each deleted FineTuneJob of that name. Raises `ApiError` if a retry may help."""
        for run in self._cache.finetunejobs.list_deleted_runs(key):
            if self._settings.checkpoint_retention_seconds:
                await self._record_deleted_run(run)
            self._cache.finetunejobs.forget_deleted_run(run)

    async def _record_deleted_run(self, run: DeletedRun) -> None:
        due_time = self._client.now() + timedelta(seconds=self._settings.checkpoint_retention_seconds)
        job = self._build_job(run.body, due_time.astimezone(UTC).strftime(TIME_FORMAT))
        uri = get_expanded_output_uri(run.body)
        if isinstance(job, str):
            log.warning("checkpoints of the deleted FineTuneJob at %s are not cleaned: %s", uri, job)
            return
        try:
            await self._client.create_job(job)
        except ApiError as error:
            if error.status == 404 or error.status in REFUSED_STATUSES:
                log.warning("checkpoints of the deleted FineTuneJob at %s are not cleaned: %s", uri, error)
            elif error.status != 409:
                raise
        else:
            log.info("created the suspended Job %s, which cleans the checkpoints", job["metadata"]["name"])

    def _build_job(self, body: Body, not_before: str | None = None) -> Body | str:
        """Return the Job, or why this version or the bounds of the installation do not allow one."""
        try:
            finetunejob = FineTuneJob.model_validate({**body, "status": None})
            profiles = self._profile_store.read()
            violations = find_violations(finetunejob, self._settings, profiles)
            job = build_clean_job(finetunejob, self._settings, not_before, choose_profile(finetunejob, profiles))
        except ValidationError as error:
            return f"the spec is not valid for this version of the operator: {error.error_count()} problems"
        # Its compute, or the bounds, may have changed since the Job of its trainer was created.
        return " ".join(violations) or job

    async def _create_job(self, request: ReconcileRequest, desired: Body) -> float | None:
        try:
            await self._client.create_job(desired)
        except ApiError as error:
            if error.status not in REFUSED_STATUSES:
                raise
            await self._record_event(request, EventReason.CLEANING_FAILED, error.message)
            return None
        log.info("created the Job %s, which cleans the checkpoints", desired["metadata"]["name"])
        return _CHECK_SECONDS

    async def _record_end(self, request: ReconcileRequest, job: Body) -> None:
        """Record that the checkpoints are deleted, or why not. A failed Job is created again after its TTL."""
        outcome = read_task_outcome(await self._client.list_job_pods(job))
        if find_true_condition(job, "Complete") is None:
            message = outcome.message if outcome else f"Job {job['metadata']['name']} failed; see its pods."
            reason = outcome.reason.value if outcome and outcome.reason is not Reason.COMPLETED else "no outcome"
            await self._record_event(request, EventReason.CLEANING_FAILED, f"{reason}: {message}")
            return
        meta = request.body["metadata"]
        stored = await self._client.patch_status(
            FINETUNEJOBS, meta["namespace"], meta["name"],
            {"metadata": {"uid": meta["uid"]}, "status": {CLEANED_TIME_FIELD: request.now}},
        )  # fmt: skip
        self._cache.finetunejobs.update(get_finetunejob_key(stored), stored)
        message = outcome.message if outcome else "the checkpoints were deleted"
        await self._record_event(request, EventReason.CHECKPOINTS_CLEANED, message)

    async def _record_event(self, request: ReconcileRequest, reason: EventReason, message: str) -> None:
        log.info("%s: %s", reason, message)
        try:
            await self._client.create_event(events.build_cleaning_event(request.meta, reason, message, request.now))
        except (ApiError, *CONNECTION_ERRORS) as error:  # it only informs
            log.warning("could not record the Event: %s: %s", type(error).__name__, error)
