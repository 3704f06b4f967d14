"""Observe, build what should be, create what is missing, patch the status if it differs. One function, any trigger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import aiohttp
from pydantic import ValidationError

from finetune_operator import children, events, kueue
from finetune_operator.api import FineTuneJob, FineTuneJobStatus, Metadata, OperatorReason
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.resources import desired_job
from finetune_operator.settings import Settings
from finetune_operator.status import Obstacle, Seen, is_terminal, next_status
from finetune_operator.store import Key, Store, name_key, version_of

Body = dict[str, Any]

log = logging.getLogger(__name__)

SLOW_START = 20.0
"""Seconds after which events are asked why nothing happens; a pod that waits for a Secret says so nowhere else."""


class Observed(NamedTuple):
    """What was seen, and when to look again where no event will say so."""

    seen: Seen
    again: float | None = None


class Reconciler:
    """Brings the cluster to what one FineTuneJob asks for. Level-based: what happened before does not matter."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Work on one key once; returns the seconds after which to look again, if no event is to be expected."""
        body = next(reversed(self._store.finetunejobs.of(key)), None)
        if body is None or children.is_being_deleted(body):
            self._store.progress.pop(key, None)
            return None
        meta, previous = Metadata.model_validate(body["metadata"]), _previous_status(body)
        observed = Observed(Seen()) if is_terminal(previous) else await self._observe(key, meta, body)
        status = next_status(meta, previous, observed.seen, _text(self._now()))
        await self._publish(meta, previous, status, body)
        if is_terminal(status):
            self._store.progress.pop(key, None)
            return None
        return observed.again

    async def _observe(self, key: Key, meta: Metadata, body: Body) -> Observed:
        mine = [job for job in self._store.jobs.of(key) if children.is_owned_by(job, meta.uid)]
        job = next((job for job in mine if job["metadata"]["name"] == meta.name), None)
        if job is None:
            made = await self._create_job(key, body)
            if isinstance(made, Obstacle):
                return Observed(Seen(obstacle=made), self._patience(body))
            job = made
        pods = tuple(pod for pod in self._store.pods.of(key) if children.is_owned_by(pod, job["metadata"]["uid"]))
        if kueue.holds(job):
            said = kueue.waiting(await self._cluster.list_workloads(meta.namespace, job["metadata"]["uid"]))
            return Observed(Seen(job=job, pods=pods, warning=said), self._patience(job))
        slow = _slow_start(job, pods)
        warning = await self._warning(slow) if slow and self._age(slow) > SLOW_START else None
        seen = Seen(job=job, pods=pods, progress=self._store.progress.get(key), warning=warning)
        return Observed(seen, max(SLOW_START - self._age(slow) + 1, self._patience(slow)) if slow else None)

    async def _create_job(self, key: Key, body: Body) -> Body | Obstacle:
        if busy := self._still_runs(key):
            return Obstacle(OperatorReason.JOB_PENDING, f"Pod {busy} of an earlier Job of this name has not ended yet.")
        await self._refuse_stale(key, body)
        try:
            desired = desired_job(FineTuneJob.model_validate({**body, "status": None}), self._settings)
        except ValidationError as error:
            return Obstacle(OperatorReason.INVALID_SPEC, _explain(error), final=True)
        try:
            job = await self._cluster.create_job(desired)
        except ApiError as error:
            return await self._not_created(key, body, error)
        log.info("created Job %s/%s", *key)
        self._store.jobs.put(key, job)
        return job

    async def _not_created(self, key: Key, body: Body, error: ApiError) -> Body | Obstacle:
        if error.status == 422:  # by the Job's own validation: the spec cannot change, so it stays so
            return Obstacle(OperatorReason.INVALID_SPEC, error.message, final=True)
        if error.status in (400, 403):  # by quota, policy or a webhook
            return Obstacle(OperatorReason.JOB_REFUSED, error.message)
        job = await self._cluster.read_job(*key) if error.status == 409 else None
        if job is None:
            raise error
        if children.is_owned_by(job, body["metadata"]["uid"]):
            self._store.jobs.put(key, job)
            return job
        if children.is_being_deleted(job) or children.is_of_a_finetunejob(job, body["metadata"]["name"]):
            return Obstacle(
                OperatorReason.JOB_PENDING, "The Job of an earlier FineTuneJob of this name is not gone yet."
            )
        message = f"A Job named {job['metadata']['name']} exists and is not this FineTuneJob's; choose another name."
        return Obstacle(OperatorReason.NAME_CONFLICT, message, final=True)

    async def _refuse_stale(self, key: Key, body: Body) -> None:
        """A Job that was there and is missing may have ended: make no other on the word of a store that lags."""
        if not (body.get("status") or {}).get("jobName"):
            return
        stored = await self._cluster.read_finetunejob(*key)
        if stored is None or version_of(stored) != version_of(body):
            if stored:
                self._store.finetunejobs.put(key, stored)
            raise ApiError(409, "Conflict", "the FineTuneJob has changed")

    def _still_runs(self, key: Key) -> str | None:
        """A pod of a deleted Job of this name that still trains: two at once would write the same output."""
        pods = (pod for pod in self._store.pods.of(key) if children.is_alive(pod))
        return next((pod["metadata"]["name"] for pod in pods if children.controller(pod).get("kind") == "Job"), None)

    async def _warning(self, slow: Body) -> children.Said | None:
        meta = slow["metadata"]
        return children.newest_warning(await self._cluster.events_about(meta["namespace"], meta["uid"]))

    async def _publish(self, meta: Metadata, old: FineTuneJobStatus, new: FineTuneJobStatus, body: Body) -> None:
        patch = events.merge_patch(old.to_json(), new.to_json())
        if not patch:
            return
        version = body["metadata"]["resourceVersion"]
        try:
            change = {"metadata": {"resourceVersion": version}, "status": patch}
            stored = await self._cluster.patch_status(meta.namespace, meta.name, change)
        except ApiError as error:
            if error.status == 404:
                return  # it was deleted
            raise
        self._store.finetunejobs.put(name_key(stored), stored)
        event = events.transition(meta, old, new, _text(self._now()))
        if event is None:
            return
        log.info("%s/%s: %s: %s", meta.namespace, meta.name, event["reason"], event["message"])
        try:
            await self._cluster.create_event(event)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:  # the status says it all
            log.warning("%s/%s: no event: %s", meta.namespace, meta.name, error)

    def _age(self, body: Body) -> float:
        created = datetime.fromisoformat(body["metadata"]["creationTimestamp"])
        return (self._now() - created).total_seconds()

    def _patience(self, body: Body) -> float:
        """When to look again at something that waits: the longer it has waited, the later."""
        return min(600.0, max(5.0, self._age(body) / 4))


def _slow_start(job: Body, pods: tuple[Body, ...]) -> Body | None:
    """The object whose events say why nothing happens: a pod on a node that does not start, a Job without a pod."""
    if children.has_ended(job) or job["spec"].get("suspend"):
        return None
    last = children.newest(pods)
    if last is None:
        return job
    pending = children.is_alive(last) and children.is_scheduled(last) and not children.is_running(last)
    return last if pending else None


def _previous_status(body: Body) -> FineTuneJobStatus:
    """The stored status; a newer operator may have written fields that this one does not know.

    One that cannot be read raises: it may be terminal, so nothing is done.
    """
    return FineTuneJobStatus.model_validate(body.get("status") or {}, extra="ignore")


def _explain(error: ValidationError) -> str:
    """Which fields are wrong, without their values."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:10])


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
