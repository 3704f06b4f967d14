"""Observe the Job, the pods and the queue of one FineTuneJob. Nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetune_operator.api.objects import Body
from finetune_operator.controller.finetunejob.request import ReconcileRequest
from finetune_operator.kube.cache import get_resource_version
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.transport import ApiError
from finetune_operator.observed import workload
from finetune_operator.observed.objects import (
    ReasonMessage,
    find_true_condition,
    get_controller_ref,
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
from finetune_operator.observed.state import ObservedState
from finetune_operator.status import deadlines
from finetune_operator.status.job_status import is_terminal


class Observer:
    """Reads from the cache, and from the API server what no watch provides."""

    def __init__(self, cache: FineTuneJobCache, client: KubeClient) -> None:
        self._cache = cache
        self._client = client

    async def observe(self, request: ReconcileRequest) -> ObservedState:
        """Return the state of the run's Job and pods. The state of a finished run is not read.

        Raises `ApiError` (409) if the cache is too old to decide whether a Job has to be created.
        """
        if is_terminal(request.previous_status):
            return ObservedState()
        job = self._cache.get_job(request.body)
        policy = request.run_policy
        if job is None and (policy.cancel or self._find_terminating_pod(request)):
            # The cache does not contain a Job whose label was removed, and may not contain a new one. A cancelled run
            # without a Job has ended for good.
            job = await self.find_owned_job(request)
        if job is None and not (policy.suspend or policy.cancel or self._find_terminating_pod(request)):
            await self._check_cache_is_current(request)
        return await self.observe_job(request, job)

    async def observe_job(self, request: ReconcileRequest, job: Body | None) -> ObservedState:
        """Return the state of the run with this Job and its pods, or without a Job.

        Raises `ApiError` (409) if the Job has ended and the cache does not contain yet how its pods did.
        """
        if job is None:
            return ObservedState(
                run_policy=request.run_policy,
                spec=request.body["spec"],
                terminating_pod=self._find_terminating_pod(request),
                orphaned_pods=self._list_orphaned_pods(request),
            )
        pods = self._list_owned_pods(request, job)
        if is_finished(job) and _is_outcome_missing(job, pods):
            await self._update_pods(request, pods)
            pods = self._list_owned_pods(request, job)
        uid = job["metadata"]["uid"]
        return ObservedState(
            job=job,
            pods=pods,
            orphaned_pods=tuple(pod for pod in self._list_orphaned_pods(request) if not is_controlled_by(pod, uid)),
            run_policy=request.run_policy,
            spec=request.body["spec"],
        )

    async def add_details(self, request: ReconcileRequest, observed: ObservedState) -> ObservedState:
        """Add the trainer's progress, and the reason why a pod does not start or a queue holds the Job."""
        if observed.job is None:
            return observed
        return replace(
            observed,
            progress=self._cache.get_last_progress(request.key, find_newest_pod(list_rank_zero_pods(observed.pods))),
            warning=await self._find_startup_warning(observed, request.now),
            queue_status=await self._find_queue_status(observed.job),
        )

    async def find_owned_job(self, request: ReconcileRequest) -> Body | None:
        """Read the FineTuneJob's own Job, which the cache may not contain, and add it to the cache."""
        job = await self._client.read_job(request.key.namespace, request.key.name)
        if job is None or not is_controlled_by(job, request.meta.uid):
            return None
        self._cache.jobs.update(request.key, job)
        return job

    def _find_terminating_pod(self, request: ReconcileRequest) -> str | None:
        """Return the name of a pod of an earlier Job that still runs: two trainers would write the same output."""
        pods = (pod for pod in self._cache.pods.list_by_key(request.key) if is_alive(pod))
        return next((pod["metadata"]["name"] for pod in pods if get_controller_ref(pod).get("kind") == "Job"), None)

    async def _update_pods(self, request: ReconcileRequest, cached_pods: Sequence[Body]) -> None:
        """Read the pods of a Job that has ended. Raise if one is gone whose end the watch has not reported yet."""
        stored_pods = await self._client.list_pods(request.key.namespace, request.key.name)
        for pod in stored_pods:
            self._cache.pods.update(request.key, pod)
        stored_uids = {pod["metadata"]["uid"] for pod in stored_pods}
        if any(is_alive(pod) and pod["metadata"]["uid"] not in stored_uids for pod in cached_pods):
            raise ApiError(409, "Conflict", "a pod of the Job was deleted since it was cached")

    def _list_owned_pods(self, request: ReconcileRequest, job: Body) -> tuple[Body, ...]:
        pods = self._cache.pods.list_with_deleted(request.key)
        return tuple(pod for pod in pods if is_controlled_by(pod, job["metadata"]["uid"]))

    def _list_orphaned_pods(self, request: ReconcileRequest) -> tuple[Body, ...]:
        pods = self._cache.pods.list_with_deleted(request.key)
        return tuple(pod for pod in pods if belongs_to_job_of(pod, request.body))

    async def _check_cache_is_current(self, request: ReconcileRequest) -> None:
        """Raise if the FineTuneJob had a Job and the cache is stale: that Job may have ended, so none is created."""
        if not (request.body.get("status") or {}).get("jobName"):
            return
        stored = await self._client.read_finetunejob(request.key.namespace, request.key.name)
        if stored is None or get_resource_version(stored) != get_resource_version(request.body):
            if stored:
                self._cache.finetunejobs.update(request.key, stored)
            raise ApiError(409, "Conflict", "the FineTuneJob has changed since it was cached")

    async def _find_startup_warning(self, observed: ObservedState, now: str) -> ReasonMessage | None:
        startup_delay = deadlines.find_startup_delay(observed.job, observed.pods)
        if startup_delay is None or not startup_delay.is_overdue(now):
            return None
        meta = startup_delay.involved_object["metadata"]
        return startup_delay.find_warning(await self._client.list_events(meta["namespace"], meta["uid"]))

    async def _find_queue_status(self, job: Body) -> ReasonMessage | None:
        if not workload.is_queued(job):
            return None
        meta = job["metadata"]
        return workload.find_queue_status(await self._client.list_workloads(meta["namespace"], meta["uid"]))


def _is_outcome_missing(job: Body, pods: Sequence[Body]) -> bool:
    """Return whether the cached pods do not explain how the Job ended, because their watch is behind that of Jobs."""
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    if last_pod is None or is_alive(last_pod):
        return True
    return find_true_condition(job, "Complete") is not None and get_termination(last_pod).exit_code != 0
