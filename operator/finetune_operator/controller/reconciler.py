"""Observe, build what should be, create what is missing, patch the status if it differs. One function, any trigger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy, read_run_policy
from finetune_operator.controller import job_patch
from finetune_operator.controller.job_control import JobControl
from finetune_operator.kube.cache import InformerCache, Key, get_object_key, get_resource_version
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed import workload
from finetune_operator.observed.job import is_job_finishing
from finetune_operator.observed.objects import (
    ReasonMessage,
    find_true_condition,
    is_being_deleted,
    is_controlled_by,
    is_finished,
)
from finetune_operator.observed.pod import (
    belongs_to_job_of,
    find_newest_pod,
    get_termination,
    is_alive,
    list_rank_zero_pods,
)
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines, events
from finetune_operator.status.job_status import compute_status, is_terminal
from finetune_operator.telemetry import counters

log = logging.getLogger(__name__)

_REQUEUE_AFTER_PATCH = 1.0
"""Seconds after which to look again: what others changed is in the answer, so no event tells of it any more."""
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class ReconcileRequest(NamedTuple):
    """One FineTuneJob, as it is stored."""

    key: Key
    body: Body
    meta: ObjectMeta
    run_policy: RunPolicy
    previous_status: FineTuneJobStatus
    now: str
    """One moment for the whole look."""


class Reconciler:
    """Brings the cluster to what one FineTuneJob asks for. Level-based: what happened before does not matter."""

    def __init__(
        self, cache: InformerCache, client: KubeClient, settings: Settings, now: Callable[[], datetime]
    ) -> None:
        self._cache = cache
        self._client = client
        self._job_control = JobControl(cache, client, settings)
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Work on one key once; returns the seconds after which to look again, if no event is to be expected."""
        body = self._cache.get_finetunejob(key)
        if body is None or is_being_deleted(body):
            self._cache.evict_run(key)
            return None
        meta, now = ObjectMeta.model_validate(body["metadata"]), self._now().astimezone(UTC).strftime(_TIME_FORMAT)
        request = ReconcileRequest(key, body, meta, read_run_policy(body), _parse_stored_status(body), now)
        observed = ObservedState() if is_terminal(request.previous_status) else await self._ensure_job(request)
        status = compute_status(request.meta, request.previous_status, observed, now)
        await self._publish_status(request, status)
        if is_terminal(status):
            return await self._clean_up(request, status)
        if await self._sync_job(request, observed, status):
            return _REQUEUE_AFTER_PATCH
        return deadlines.requeue_after(observed, status, now)

    async def _ensure_job(self, request: ReconcileRequest) -> ObservedState:
        job = self._cache.get_job(request.body)
        terminating_pod = self._job_control.find_terminating_pod(request.key) if job is None else None
        if terminating_pod:
            job = await self._job_control.find_owned_job(request.key, request.body)
        if request.run_policy.suspend:
            if job and _can_be_deleted(job):
                job = await self._delete_job(request.key, job)
            if job is None:
                return ObservedState(
                    run_policy=request.run_policy,
                    terminating_pod=terminating_pod,
                    orphaned_pods=self._list_orphaned_pods(request),
                )
        if job is None:
            created = await self._job_control.ensure_job(request.key, request.body)
            if isinstance(created, Blocked):
                return ObservedState(
                    blocked=created, run_policy=request.run_policy, orphaned_pods=self._list_orphaned_pods(request)
                )
            job = created
        return await self._observe_job(request, job)

    async def _observe_job(self, request: ReconcileRequest, job: Body) -> ObservedState:
        pods = self._list_owned_pods(request, job)
        if is_finished(job) and _is_outcome_missing(job, pods):
            await self._refresh_pods(request)
            pods = self._list_owned_pods(request, job)
        if request.run_policy.nodes > 1 and _is_between_attempts(job, pods):
            await self._job_control.ensure_service(request.body)
        return ObservedState(
            job=job,
            pods=pods,
            orphaned_pods=tuple(
                pod for pod in self._list_orphaned_pods(request) if not is_controlled_by(pod, job["metadata"]["uid"])
            ),
            progress=self._cache.get_last_progress(request.key, find_newest_pod(list_rank_zero_pods(pods))),
            warning=await self._get_startup_warning(deadlines.find_startup_delay(job, pods), request.now),
            run_policy=request.run_policy,
            queue_status=await self._get_queue_status(job),
        )

    def _list_owned_pods(self, request: ReconcileRequest, job: Body) -> tuple[Body, ...]:
        """Its Job's."""
        uid = job["metadata"]["uid"]
        return tuple(pod for pod in self._cache.pods.list_with_deleted(request.key) if is_controlled_by(pod, uid))

    def _list_orphaned_pods(self, request: ReconcileRequest) -> tuple[Body, ...]:
        """Those of its Job that is gone."""
        return tuple(
            pod for pod in self._cache.pods.list_with_deleted(request.key) if belongs_to_job_of(pod, request.body)
        )

    async def _refresh_pods(self, request: ReconcileRequest) -> None:
        """The watches are not in step: a Job may be seen to have ended before its pod, and with it the last word."""
        for pod in await self._client.list_pods(*request.key):
            self._cache.pods.update(request.key, pod)

    async def _delete_job(self, key: Key, job: Body) -> Body | None:
        """In the foreground: the Job is there until its pods have saved and left."""
        deleted = await self._client.delete_job(job)
        log.info("deleted the Job")
        if deleted:
            self._cache.jobs.update(key, deleted)
        return deleted

    async def _sync_job(self, request: ReconcileRequest, observed: ObservedState, status: FineTuneJobStatus) -> bool:
        """The few fields of a Job that follow its FineTuneJob; whether one was changed, and not changed back by a
        webhook: then no other look would help."""
        patch = job_patch.build_job_patch(observed, status)
        if observed.job is None or not patch:
            return False
        patched = await self._client.patch_job(observed.job, patch)
        self._cache.jobs.update(request.key, patched)
        return get_resource_version(patched) > get_resource_version(observed.job)

    async def _clean_up(self, request: ReconcileRequest, status: FineTuneJobStatus) -> float | None:
        """After the end: no Job goes on, and the FineTuneJob itself goes when its time has come."""
        self._cache.evict_run(request.key)
        job = self._cache.get_job(request.body)
        if job and _can_be_deleted(job):
            await self._delete_job(request.key, job)
        ttl_deadline = deadlines.compute_ttl_expiry(request.run_policy, status)
        if deadlines.has_passed(ttl_deadline, request.now):
            await self._delete_finetunejob(
                request.key, self._cache.get_finetunejob(request.key) or request.body
            )  # with its new status
            return None
        return deadlines.seconds_until(ttl_deadline, request.now)

    async def _delete_finetunejob(self, key: Key, body: Body) -> None:
        """Once: what is seen before the watch tells of it asks for no other."""
        remaining = await self._client.delete_finetunejob(body)
        if remaining:
            self._cache.finetunejobs.update(key, remaining)
        else:
            self._cache.finetunejobs.delete(body)

    async def _get_startup_warning(
        self, startup_delay: deadlines.StartupDelay | None, now: str
    ) -> ReasonMessage | None:
        if startup_delay is None or not startup_delay.is_overdue(now):
            return None
        meta = startup_delay.involved_object["metadata"]
        return startup_delay.find_warning(await self._client.list_events(meta["namespace"], meta["uid"]))

    async def _get_queue_status(self, job: Body) -> ReasonMessage | None:
        if not workload.is_queued(job):
            return None
        return workload.find_queue_status(
            await self._client.list_workloads(job["metadata"]["namespace"], job["metadata"]["uid"])
        )

    async def _publish_status(self, request: ReconcileRequest, status: FineTuneJobStatus) -> None:
        patch = events.create_merge_patch(request.previous_status.to_json(), status.to_json())
        if not patch:
            return
        try:
            stored = await self._patch_status(request, patch)
        except ApiError as error:
            if error.status == 404:
                return  # it was deleted
            raise
        self._cache.finetunejobs.update(get_object_key(stored), stored)
        counters.count_status_change(request.meta, request.previous_status, status)
        await self._record_event(request, status)

    async def _patch_status(self, request: ReconcileRequest, patch: Body) -> Body:
        """Store the status; without its progress, which is only shown, if the API server refuses it.

        The CRD may be of an earlier version, which does not know a stage of this one.
        """
        request_body = {"metadata": {"resourceVersion": request.body["metadata"]["resourceVersion"]}, "status": patch}
        try:
            return await self._client.patch_status(request.meta.namespace, request.meta.name, request_body)
        except ApiError as error:
            without_progress = {key: value for key, value in patch.items() if key != "progress"}
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY or without_progress == patch:
                raise
        if not without_progress:
            return request.body
        return await self._client.patch_status(
            request.meta.namespace, request.meta.name, {**request_body, "status": without_progress}
        )

    async def _record_event(self, request: ReconcileRequest, status: FineTuneJobStatus) -> None:
        event = events.build_transition_event(request.meta, request.previous_status, status, request.now)
        if event is None:
            return
        log.info("%s: %s", event["reason"], event["message"])
        try:
            await self._client.create_event(event)
        except (ApiError, *CONNECTION_ERRORS) as error:  # the status says it all
            log.warning("no event: %s: %s", type(error).__name__, error)


def _can_be_deleted(job: Body) -> bool:
    """One that is about to say how it ended is let."""
    return not (is_finished(job) or is_job_finishing(job) or is_being_deleted(job))


def _is_outcome_missing(job: Body, pods: Sequence[Body]) -> bool:
    """Whether the Job has ended and the pods that are known do not say how: its watch is ahead of theirs."""
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    if last_pod is None or is_alive(last_pod):
        return True
    return find_true_condition(job, "Complete") is not None and get_termination(last_pod).exit_code != 0


def _is_between_attempts(job: Body, pods: Sequence[Body]) -> bool:
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    return last_pod is not None and not is_alive(last_pod) and _can_be_deleted(job)


def _parse_stored_status(body: Body) -> FineTuneJobStatus:
    """The stored status; a newer operator may have written fields that this one does not know.

    One that cannot be read raises: it may be terminal, so nothing is done. Its progress is only shown, and a newer
    trainer may have a stage that this operator does not know: then the rest counts.
    """
    stored = body.get("status") or {}
    try:
        return FineTuneJobStatus.model_validate(stored, extra="ignore")
    except ValidationError:
        without_progress = {key: value for key, value in stored.items() if key != "progress"}
        return FineTuneJobStatus.model_validate(without_progress, extra="ignore")
