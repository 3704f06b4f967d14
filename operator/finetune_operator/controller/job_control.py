"""Making the Job of a FineTuneJob, or finding out why there can be none."""

from __future__ import annotations

import logging

import msgspec
from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, OperatorReason, run_policy
from finetune_operator.api.objects import Body
from finetune_operator.kube.cache import InformerCache, Key, get_resource_version
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed.objects import (
    get_controller_ref,
    is_being_deleted,
    is_controlled_by,
    is_controlled_by_finetunejob,
)
from finetune_operator.observed.pod import is_alive
from finetune_operator.observed.state import Blocked
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)


class JobControl:
    """Creates Jobs: each once, and none while another of its name still runs."""

    def __init__(self, cache: InformerCache, client: KubeClient, settings: Settings) -> None:
        self._cache = cache
        self._client = client
        self._settings = settings

    async def ensure_job(self, key: Key, body: Body) -> Body | Blocked:
        """The Job as it was created, or found to be there already."""
        if terminating_pod := self.find_terminating_pod(key):
            return Blocked(
                OperatorReason.JOB_PENDING, f"Pod {terminating_pod} of an earlier Job of this name has not ended yet."
            )
        await self._check_cache_is_current(key, body)
        try:
            finetunejob = FineTuneJob.model_validate({**body, "status": None})
            desired = build_job(finetunejob, self._settings)
            run_policy.parse_run_policy(body)
        except ValidationError as error:
            return Blocked(OperatorReason.INVALID_SPEC, _format_validation_error(error), terminal=True)
        except msgspec.ValidationError as error:  # pydantic takes "true" for true; a lifecycle that is guessed is none
            return Blocked(OperatorReason.INVALID_SPEC, f"spec: {error}", terminal=True)
        if policy_violations := find_violations(finetunejob, self._settings):
            return await self._block_by_policy(key, body, " ".join(policy_violations))
        try:
            if (service := multi_node.build_service(desired)) and (
                conflict := await self._create_service(body, service)
            ):
                return conflict
            job = await self._client.create_job(desired)
        except ApiError as error:
            return await self._handle_create_error(key, body, error)
        log.info("created the Job")
        self._cache.jobs.update(key, job)
        return job

    async def ensure_service(self, body: Body) -> None:
        """See to it that the pods of the next attempt can meet: somebody may have deleted what they meet by."""
        try:
            desired = build_job(FineTuneJob.model_validate({**body, "status": None}), self._settings)
            if service := multi_node.build_service(desired):
                await self._create_service(body, service)
        except (ApiError, ValidationError) as error:  # most likely it is there, and what else is to be done must go on
            log.warning("not known whether the Service is there: %s: %s", type(error).__name__, error)

    async def find_owned_job(self, key: Key, body: Body) -> Body | None:
        """The FineTuneJob's own Job, though no watch shows it: somebody may have taken its label off."""
        job = await self._client.read_job(*key)
        return job and self._cache_if_owned(key, body, job)

    def find_terminating_pod(self, key: Key) -> str | None:
        """A pod of a deleted Job of this name that still trains: two at once would write the same output."""
        pods = (pod for pod in self._cache.pods.list_by_key(key) if is_alive(pod))
        return next((pod["metadata"]["name"] for pod in pods if get_controller_ref(pod).get("kind") == "Job"), None)

    async def _handle_create_error(self, key: Key, body: Body, error: ApiError) -> Body | Blocked:
        if error.status in (400, 403) or _is_admission_error(error):  # by quota, policy or a webhook
            return Blocked(OperatorReason.JOB_REFUSED, error.message)
        if error.status == 422:  # by the Job's own validation: the spec cannot change, so it stays so
            return Blocked(OperatorReason.INVALID_SPEC, error.message, terminal=True)
        job = await self._client.read_job(*key) if error.status == 409 else None
        if job is None:
            raise error
        return self._cache_if_owned(key, body, job) or _build_name_conflict("Job", job)

    async def _block_by_policy(self, key: Key, body: Body, message: str) -> Body | Blocked:
        """Out of bounds, unless a Job that the store has not seen yet was made within them: that one goes on."""
        return await self.find_owned_job(key, body) or Blocked(OperatorReason.NOT_ALLOWED, message, terminal=True)

    def _cache_if_owned(self, key: Key, body: Body, job: Body) -> Body | None:
        if not is_controlled_by(job, body["metadata"]["uid"]):
            return None
        self._cache.jobs.update(key, job)
        return job

    async def _create_service(self, body: Body, service: Body) -> Blocked | None:
        """What keeps the name of the Service that the pods meet by."""
        existing = await self._client.create_service(service)
        return (
            None if is_controlled_by(existing, body["metadata"]["uid"]) else _build_name_conflict("Service", existing)
        )

    async def _check_cache_is_current(self, key: Key, body: Body) -> None:
        """A Job that was there and is missing may have ended: make no other on the word of a store that lags."""
        if not (body.get("status") or {}).get("jobName"):
            return
        stored = await self._client.read_finetunejob(*key)
        if stored is None or get_resource_version(stored) != get_resource_version(body):
            if stored:
                self._cache.finetunejobs.update(key, stored)
            raise ApiError(409, "Conflict", "the FineTuneJob has changed")


def _is_admission_error(error: ApiError) -> bool:
    """Whether a policy or webhook refused, or a webhook does not answer: any status may say so, and it may pass."""
    message = error.message
    return (
        " denied request: " in message
        or message.startswith("admission webhook ")
        or "failed calling webhook" in message
    )


def _build_name_conflict(kind: str, existing: Body) -> Blocked:
    name = existing["metadata"]["name"]
    if is_being_deleted(existing) or is_controlled_by_finetunejob(existing, name):
        message = f"The {kind} of an earlier FineTuneJob of this name is not gone yet."
        return Blocked(OperatorReason.JOB_PENDING, message)
    message = f"A {kind} named {name} exists and is not this FineTuneJob's; choose another name."
    return Blocked(OperatorReason.NAME_CONFLICT, message, terminal=True)


def _format_validation_error(error: ValidationError) -> str:
    """Which fields are wrong, without their values."""
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()[:10])
