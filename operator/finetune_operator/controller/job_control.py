"""Making the Job of a FineTuneJob, or finding out why there can be none."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, OperatorReason, run_policy
from finetune_operator.kube.cache import Key, Store, version_of
from finetune_operator.kube.client import Cluster
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed import objects
from finetune_operator.observed.state import Obstacle
from finetune_operator.policy.validation import refusals
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import desired_job
from finetune_operator.settings import Settings

Body = dict[str, Any]

log = logging.getLogger(__name__)


class JobCreator:
    """Creates Jobs: each once, and none while another of its name still runs."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings

    async def create(self, key: Key, body: Body) -> Body | Obstacle:
        """The Job as it was created, or found to be there already."""
        if busy := self.still_runs(key):
            return Obstacle(OperatorReason.JOB_PENDING, f"Pod {busy} of an earlier Job of this name has not ended yet.")
        await self._refuse_stale(key, body)
        try:
            asked = FineTuneJob.model_validate({**body, "status": None})
            desired = desired_job(asked, self._settings)
            run_policy.read(body)
        except ValidationError as error:
            return Obstacle(OperatorReason.INVALID_SPEC, _explain(error), final=True)
        except msgspec.ValidationError as error:  # pydantic takes "true" for true; a lifecycle that is guessed is none
            return Obstacle(OperatorReason.INVALID_SPEC, f"spec: {error}", final=True)
        if refused := refusals(asked, self._settings):
            return await self._refused(key, body, " ".join(refused))
        try:
            if (service := multi_node.service(desired)) and (taken := await self._service(body, service)):
                return taken
            job = await self._cluster.create_job(desired)
        except ApiError as error:
            return await self._not_created(key, body, error)
        log.info("created the Job")
        self._store.jobs.put(key, job)
        return job

    async def keep_service(self, body: Body) -> None:
        """See to it that the pods of the next attempt can meet: somebody may have deleted what they meet by."""
        try:
            desired = desired_job(FineTuneJob.model_validate({**body, "status": None}), self._settings)
            if service := multi_node.service(desired):
                await self._service(body, service)
        except (ApiError, ValidationError) as error:  # most likely it is there, and what else is to be done must go on
            log.warning("not known whether the Service is there: %s: %s", type(error).__name__, error)

    async def find(self, key: Key, body: Body) -> Body | None:
        """The FineTuneJob's own Job, though no watch shows it: somebody may have taken its label off."""
        job = await self._cluster.read_job(*key)
        return job and self._own(key, body, job)

    def still_runs(self, key: Key) -> str | None:
        """A pod of a deleted Job of this name that still trains: two at once would write the same output."""
        pods = (pod for pod in self._store.pods.of(key) if objects.is_alive(pod))
        return next((pod["metadata"]["name"] for pod in pods if objects.controller(pod).get("kind") == "Job"), None)

    async def _not_created(self, key: Key, body: Body, error: ApiError) -> Body | Obstacle:
        if error.status in (400, 403) or _is_of_admission(error):  # by quota, policy or a webhook
            return Obstacle(OperatorReason.JOB_REFUSED, error.message)
        if error.status == 422:  # by the Job's own validation: the spec cannot change, so it stays so
            return Obstacle(OperatorReason.INVALID_SPEC, error.message, final=True)
        job = await self._cluster.read_job(*key) if error.status == 409 else None
        if job is None:
            raise error
        return self._own(key, body, job) or _taken("Job", job)

    async def _refused(self, key: Key, body: Body, message: str) -> Body | Obstacle:
        """Out of bounds, unless a Job that the store has not seen yet was made within them: that one goes on."""
        return await self.find(key, body) or Obstacle(OperatorReason.NOT_ALLOWED, message, final=True)

    def _own(self, key: Key, body: Body, job: Body) -> Body | None:
        if not objects.is_owned_by(job, body["metadata"]["uid"]):
            return None
        self._store.jobs.put(key, job)
        return job

    async def _service(self, body: Body, service: Body) -> Obstacle | None:
        """What keeps the name of the Service that the pods meet by."""
        found = await self._cluster.create_service(service)
        return None if objects.is_owned_by(found, body["metadata"]["uid"]) else _taken("Service", found)

    async def _refuse_stale(self, key: Key, body: Body) -> None:
        """A Job that was there and is missing may have ended: make no other on the word of a store that lags."""
        if not (body.get("status") or {}).get("jobName"):
            return
        stored = await self._cluster.read_finetunejob(*key)
        if stored is None or version_of(stored) != version_of(body):
            if stored:
                self._store.finetunejobs.put(key, stored)
            raise ApiError(409, "Conflict", "the FineTuneJob has changed")


def _is_of_admission(error: ApiError) -> bool:
    """Whether a policy or webhook refused, or a webhook does not answer: any status may say so, and it may pass."""
    said = error.message
    return " denied request: " in said or said.startswith("admission webhook ") or "failed calling webhook" in said


def _taken(kind: str, found: Body) -> Obstacle:
    name = found["metadata"]["name"]
    if objects.is_being_deleted(found) or objects.is_of_a_finetunejob(found, name):
        message = f"The {kind} of an earlier FineTuneJob of this name is not gone yet."
        return Obstacle(OperatorReason.JOB_PENDING, message)
    message = f"A {kind} named {name} exists and is not this FineTuneJob's; choose another name."
    return Obstacle(OperatorReason.NAME_CONFLICT, message, final=True)


def _explain(error: ValidationError) -> str:
    """Which fields are wrong, without their values."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10])
