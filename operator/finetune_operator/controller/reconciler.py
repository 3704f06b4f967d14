"""Observe, build what should be, create what is missing, patch the status if it differs. One function, any trigger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple

from pydantic import ValidationError

from finetune_operator.api import FineTuneJobStatus, Metadata
from finetune_operator.api.run_policy import Wanted, wanted
from finetune_operator.controller import job_patch
from finetune_operator.controller.job_control import JobCreator
from finetune_operator.kube.cache import Key, Store, name_key, version_of
from finetune_operator.kube.client import Cluster
from finetune_operator.kube.transport import NO_ANSWER, ApiError
from finetune_operator.observed import objects, workload
from finetune_operator.observed.state import Obstacle, Seen
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines, events
from finetune_operator.status.job_status import is_terminal, next_status
from finetune_operator.telemetry import counters

Body = dict[str, Any]

log = logging.getLogger(__name__)

_AFTER_A_CHANGE = 1.0
"""Seconds after which to look again: what others changed is in the answer, so no event tells of it any more."""
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Run(NamedTuple):
    """One FineTuneJob, as it is stored."""

    key: Key
    body: Body
    meta: Metadata
    wanted: Wanted
    previous: FineTuneJobStatus
    now: str
    """One moment for the whole look."""


class Reconciler:
    """Brings the cluster to what one FineTuneJob asks for. Level-based: what happened before does not matter."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store = store
        self._cluster = cluster
        self._creator = JobCreator(store, cluster, settings)
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Work on one key once; returns the seconds after which to look again, if no event is to be expected."""
        body = self._store.finetunejob(key)
        if body is None or objects.is_being_deleted(body):
            self._store.forget_run(key)
            return None
        meta, now = Metadata.model_validate(body["metadata"]), self._now().astimezone(UTC).strftime(_TIME)
        run = Run(key, body, meta, wanted(body), _previous_status(body), now)
        seen = Seen() if is_terminal(run.previous) else await self._observe(run)
        status = next_status(run.meta, run.previous, seen, now)
        await self._publish(run, status)
        if is_terminal(status):
            return await self._clear_up(run, status)
        if await self._adjust(run, seen, status):
            return _AFTER_A_CHANGE
        return deadlines.next_look(seen, status, now)

    async def _observe(self, run: Run) -> Seen:
        job = self._store.job(run.body)
        leaving = self._creator.still_runs(run.key) if job is None else None
        if leaving:
            job = await self._creator.find(run.key, run.body)
        if run.wanted.suspend:
            if job and _may_be_deleted(job):
                job = await self._delete(run.key, job)
            if job is None:
                return Seen(wanted=run.wanted, leaving=leaving, left=self._left_pods(run))
        if job is None:
            made = await self._creator.create(run.key, run.body)
            if isinstance(made, Obstacle):
                return Seen(obstacle=made, wanted=run.wanted, left=self._left_pods(run))
            job = made
        return await self._see(run, job)

    async def _see(self, run: Run, job: Body) -> Seen:
        pods = self._pods(run, job)
        if objects.has_ended(job) and _is_untold(job, pods):
            await self._read_pods(run)
            pods = self._pods(run, job)
        if run.wanted.nodes > 1 and _is_between_attempts(job, pods):
            await self._creator.keep_service(run.body)
        return Seen(
            job=job,
            pods=pods,
            left=tuple(each for each in self._left_pods(run) if not objects.is_owned_by(each, job["metadata"]["uid"])),
            progress=self._store.heard(run.key, objects.newest(objects.leaders(pods))),
            warning=await self._warning(deadlines.slow_start(job, pods), run.now),
            wanted=run.wanted,
            waits=await self._waits(job),
        )

    def _pods(self, run: Run, job: Body) -> tuple[Body, ...]:
        """Its Job's."""
        uid = job["metadata"]["uid"]
        return tuple(pod for pod in self._store.pods.with_left(run.key) if objects.is_owned_by(pod, uid))

    def _left_pods(self, run: Run) -> tuple[Body, ...]:
        """Those of its Job that is gone."""
        return tuple(pod for pod in self._store.pods.with_left(run.key) if objects.is_of_a_job_of(pod, run.body))

    async def _read_pods(self, run: Run) -> None:
        """The watches are not in step: a Job may be seen to have ended before its pod, and with it the last word."""
        for pod in await self._cluster.read_pods(*run.key):
            self._store.pods.put(run.key, pod)

    async def _delete(self, key: Key, job: Body) -> Body | None:
        """In the foreground: the Job is there until its pods have saved and left."""
        deleted = await self._cluster.delete_job(job)
        log.info("deleted the Job")
        if deleted:
            self._store.jobs.put(key, deleted)
        return deleted

    async def _adjust(self, run: Run, seen: Seen, status: FineTuneJobStatus) -> bool:
        """The few fields of a Job that follow its FineTuneJob; whether one was changed, and not changed back by a
        webhook: then no other look would help."""
        change = job_patch.job_change(seen, status)
        if seen.job is None or not change:
            return False
        patched = await self._cluster.patch_job(seen.job, change)
        self._store.jobs.put(run.key, patched)
        return version_of(patched) > version_of(seen.job)

    async def _clear_up(self, run: Run, status: FineTuneJobStatus) -> float | None:
        """After the end: no Job goes on, and the FineTuneJob itself goes when its time has come."""
        self._store.forget_run(run.key)
        job = self._store.job(run.body)
        if job and _may_be_deleted(job):
            await self._delete(run.key, job)
        due = deadlines.ttl_due(run.wanted, status)
        if deadlines.is_due(due, run.now):
            await self._delete_finetunejob(run.key, self._store.finetunejob(run.key) or run.body)  # with its new status
            return None
        return deadlines.until(due, run.now)

    async def _delete_finetunejob(self, key: Key, body: Body) -> None:
        """Once: what is seen before the watch tells of it asks for no other."""
        left = await self._cluster.delete_finetunejob(body)
        if left:
            self._store.finetunejobs.put(key, left)
        else:
            self._store.finetunejobs.remove(body)

    async def _warning(self, slow: deadlines.Slow | None, now: str) -> objects.Said | None:
        if slow is None or not slow.is_due(now):
            return None
        meta = slow.body["metadata"]
        return slow.told(await self._cluster.events_about(meta["namespace"], meta["uid"]))

    async def _waits(self, job: Body) -> objects.Said | None:
        if not workload.holds(job):
            return None
        return workload.waiting(
            await self._cluster.list_workloads(job["metadata"]["namespace"], job["metadata"]["uid"])
        )

    async def _publish(self, run: Run, status: FineTuneJobStatus) -> None:
        patch = events.merge_patch(run.previous.to_json(), status.to_json())
        if not patch:
            return
        try:
            stored = await self._patch_status(run, patch)
        except ApiError as error:
            if error.status == 404:
                return  # it was deleted
            raise
        self._store.finetunejobs.put(name_key(stored), stored)
        counters.count(run.meta, run.previous, status)
        await self._report(run, status)

    async def _patch_status(self, run: Run, patch: Body) -> Body:
        """Store the status; without its progress, which is only shown, if the API server refuses it.

        The CRD may be of an earlier version, which does not know a stage of this one.
        """
        change = {"metadata": {"resourceVersion": run.body["metadata"]["resourceVersion"]}, "status": patch}
        try:
            return await self._cluster.patch_status(run.meta.namespace, run.meta.name, change)
        except ApiError as error:
            rest = {key: value for key, value in patch.items() if key != "progress"}
            if error.status != HTTPStatus.UNPROCESSABLE_ENTITY or rest == patch:
                raise
        if not rest:
            return run.body
        return await self._cluster.patch_status(run.meta.namespace, run.meta.name, {**change, "status": rest})

    async def _report(self, run: Run, status: FineTuneJobStatus) -> None:
        event = events.transition(run.meta, run.previous, status, run.now)
        if event is None:
            return
        log.info("%s: %s", event["reason"], event["message"])
        try:
            await self._cluster.create_event(event)
        except (ApiError, *NO_ANSWER) as error:  # the status says it all
            log.warning("no event: %s: %s", type(error).__name__, error)


def _may_be_deleted(job: Body) -> bool:
    """One that is about to say how it ended is let."""
    return not (objects.has_ended(job) or objects.is_ending(job) or objects.is_being_deleted(job))


def _is_untold(job: Body, pods: Sequence[Body]) -> bool:
    """Whether the Job has ended and the pods that are known do not say how: its watch is ahead of theirs."""
    last = objects.newest(objects.leaders(pods))
    if last is None or objects.is_alive(last):
        return True
    return objects.condition(job, "Complete") is not None and objects.ended(last).exit_code != 0


def _is_between_attempts(job: Body, pods: Sequence[Body]) -> bool:
    last = objects.newest(objects.leaders(pods))
    return last is not None and not objects.is_alive(last) and _may_be_deleted(job)


def _previous_status(body: Body) -> FineTuneJobStatus:
    """The stored status; a newer operator may have written fields that this one does not know.

    One that cannot be read raises: it may be terminal, so nothing is done. Its progress is only shown, and a newer
    trainer may have a stage that this operator does not know: then the rest counts.
    """
    stored = body.get("status") or {}
    try:
        return FineTuneJobStatus.model_validate(stored, extra="ignore")
    except ValidationError:
        rest = {key: value for key, value in stored.items() if key != "progress"}
        return FineTuneJobStatus.model_validate(rest, extra="ignore")
