"""Create, patch and delete the Jobs of FineTuneJobs and their Services."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, OperatorReason
from finetune_operator.api.labels import PROFILE_ANNOTATION
from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.finetunejob.request import ReconcileRequest
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed.objects import (
    get_name,
    is_being_deleted,
    is_controlled_by,
    is_controlled_by_finetunejob,
)
from finetune_operator.observed.state import Blocked
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)


class JobControl:
    """Writes Jobs and Services, and updates the cache with the API server's responses."""

    def __init__(self, cache: FineTuneJobCache, client: KubeClient, settings: Settings) -> None:
        self._cache = cache
        self._client = client
        self._settings = settings

    async def create_job(self, request: ReconcileRequest, desired: Body) -> Body | Blocked:
        """Create the Job, after its Service if it has several pods. A Job of this FineTuneJob that exists is adopted.

        Return the Job, or why it cannot be created. Raises `ApiError` for errors that a retry may solve.
        """
        try:
            service = multi_node.build_service(desired)
            if service and (conflict := await self._create_service(request, service)):
                return conflict
            job = await self._client.create_job(desired)
        except ApiError as error:
            return await self._handle_create_error(request, desired, error)
        log.info("created Job")
        self._cache.jobs.update(request.key, job)
        return job

    async def ensure_service(self, request: ReconcileRequest) -> None:
        """Create the headless Service again if somebody deleted it: the pods of the next attempt need it.

        A failure is only logged. Most likely the Service exists, and the status must be updated in any case.
        """
        try:
            desired = build_job(FineTuneJob.model_validate({**request.body, "status": None}), self._settings)
            if service := multi_node.build_service(desired):
                await self._create_service(request, service)
        except (ApiError, ValidationError) as error:
            log.warning("could not ensure the headless Service: %s: %s", type(error).__name__, error)

    async def delete_job(self, key: ObjectKey, job: Body) -> Body | None:
        """Delete the Job in the foreground, so that it exists until its pods have saved a checkpoint and ended.

        Return the Job as it is now, or None if it is gone. Raises `ApiError` (409) if it has changed.
        """
        deleted = await self._client.delete_job(job)
        log.info("deleted Job")
        if deleted:
            self._cache.jobs.update(key, deleted)
        return deleted

    async def delete_pods(self, pods: Iterable[Body], grace_period_seconds: int | None = None) -> None:
        """Delete pods that are not needed. The watch reports it when they are gone.

        A failure is only logged: the run does not depend on it.
        """
        for pod in pods:
            try:
                await self._client.delete_pod(pod, grace_period_seconds)
            except ApiError as error:
                log.warning("could not delete pod %s: %s", get_name(pod), error)
            else:
                log.info("deleted pod %s", get_name(pod))

    async def patch_job(self, key: ObjectKey, job: Body, patch: Body) -> Body:
        """Merge a patch into the Job. Return the Job as it is now."""
        patched = await self._client.patch_job(job, patch)
        self._cache.jobs.update(key, patched)
        return patched

    async def _create_service(self, request: ReconcileRequest, service: Body) -> Blocked | None:
        """Create the Service. Return why the Job is blocked if another object has its name."""
        existing = await self._client.create_service(service)
        if is_controlled_by(existing, request.meta.uid):
            return None
        return _build_name_conflict(request, "Service", existing)

    async def _handle_create_error(self, request: ReconcileRequest, desired: Body, error: ApiError) -> Body | Blocked:
        if error.status in (400, 403) or _is_admission_error(error):  # quota, policy or webhook
            return Blocked(OperatorReason.JOB_REFUSED, error.message)
        profile_name = desired["metadata"].get("annotations", {}).get(PROFILE_ANNOTATION)
        if error.status == 422 and profile_name:  # an administrator can correct the profile
            message = f"With the compute profile {profile_name}, the Job is invalid: {error.message}"
            return Blocked(OperatorReason.JOB_REFUSED, message)
        if error.status == 422:  # the Job is invalid, and stays so because the spec is immutable
            return Blocked(OperatorReason.INVALID_SPEC, error.message, terminal=True)
        if error.status != 409:
            raise error
        job = await self._client.read_job(request.key.namespace, request.key.name)
        if job is None:
            raise error
        if not is_controlled_by(job, request.meta.uid):
            return _build_name_conflict(request, "Job", job)
        self._cache.jobs.update(request.key, job)
        return job


def _is_admission_error(error: ApiError) -> bool:
    """Return whether a policy or webhook rejected the Job, or a webhook did not respond. Any status is possible."""
    message = error.message
    return (
        " denied request: " in message
        or message.startswith("admission webhook ")
        or "failed calling webhook" in message
    )


def _build_name_conflict(request: ReconcileRequest, kind: str, existing: Body) -> Blocked:
    name = existing["metadata"]["name"]
    if is_being_deleted(existing) or is_controlled_by_finetunejob(existing, request.key.name):
        message = f"Waiting for the {kind} of an earlier FineTuneJob with the same name to be deleted."
        return Blocked(OperatorReason.JOB_PENDING, message)
    message = f"{kind} {name} exists and does not belong to this FineTuneJob. Choose another metadata.name."
    return Blocked(OperatorReason.NAME_CONFLICT, message, terminal=True)
