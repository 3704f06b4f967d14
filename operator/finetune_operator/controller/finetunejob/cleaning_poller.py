"""Periodically enqueue the ended runs whose checkpoints are due, and resume the suspended Jobs of deleted runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from datetime import UTC
from typing import NamedTuple

from finetune_operator.api.objects import Body, ObjectKey
from finetune_operator.controller.finetunejob.request import TIME_FORMAT
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache, get_finetunejob_key
from finetune_operator.kube.namespace_access import Scope
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.cleaning import find_live_run, may_have_checkpoints
from finetune_operator.observed.job import is_job_suspended
from finetune_operator.observed.objects import get_controller_ref, is_being_deleted, is_finished, parse_timestamp
from finetune_operator.resources.task_job import read_task_config
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines

log = logging.getLogger(__name__)

_MAX_STARTS = 20
"""Maximum number of ended runs, and of suspended Jobs, that are started by one poll: after an upgrade or a long
retention thousands may be due."""
_POLLS_PER_TRY = 12
"""Polls until a due run is enqueued again, about an hour: its Job has failed, or a live run uses its output."""


class _Output(NamedTuple):
    """The output that a Job cleans."""

    namespace: str
    uri: str
    storage: str
    """Storage config as JSON."""


class _DeferredJob(NamedTuple):
    """A suspended Job of a deleted FineTuneJob. It waits while a live run may resume from its checkpoints."""

    body: Body
    output: _Output
    due_time: float


class CleaningPoller:
    """Finds what is due. It runs every few minutes, which is exact enough for retentions of days."""

    def __init__(
        self,
        cache: FineTuneJobCache,
        client: KubeClient,
        settings: Settings,
        list_scopes: Callable[[], Collection[Scope]],
    ) -> None:
        self.interval = settings.resync_interval
        self._cache = cache
        self._client = client
        self._retention_seconds = settings.checkpoint_retention_seconds
        self._list_scopes = list_scopes
        self._is_first_poll = True
        self._poll_count_by_key: dict[ObjectKey, int] = {}
        """Polls since each due run was enqueued first. Runs that cannot be cleaned must not hold up others."""

    def reset(self) -> None:
        """Skip the next poll: the first reconciles of a new leader must not wait for it."""
        self._is_first_poll = True

    async def poll(self, enqueue: Callable[[ObjectKey], None]) -> None:
        """Enqueue due runs, resume due Jobs, and delete Jobs that a later one replaces."""
        if self._is_first_poll or not self._retention_seconds:
            self._is_first_poll = False
            return
        now = self._client.now().astimezone(UTC).strftime(TIME_FORMAT)
        self._enqueue_due_runs(enqueue, now)
        for scope in self._list_scopes():
            if scope in self._cache.unreadable_namespaces:
                continue
            try:
                await self._start_due_jobs(scope, now)
            except (ApiError, *CONNECTION_ERRORS) as error:  # of this namespace alone
                log.warning("could not start the cleaning of %s: %s: %s", scope, type(error).__name__, error)

    def _enqueue_due_runs(self, enqueue: Callable[[ObjectKey], None], now: str) -> None:
        due_keys = [get_finetunejob_key(body) for body in self._cache.finetunejobs if self._is_due(body, now)]
        counts = {key: self._poll_count_by_key.get(key, 0) for key in due_keys}
        candidates = sorted((key for key in counts if counts[key] % _POLLS_PER_TRY == 0), key=lambda key: counts[key])
        for key in candidates[:_MAX_STARTS]:
            enqueue(key)
        waiting = set(candidates[_MAX_STARTS:])
        self._poll_count_by_key = {key: count + (key not in waiting) for key, count in counts.items()}

    def _is_due(self, body: Body, now: str) -> bool:
        if not is_finished(body) or not may_have_checkpoints(body):
            return False
        completion_time = parse_timestamp(body["status"].get("completionTime"))
        return completion_time is not None and deadlines.has_passed(completion_time + self._retention_seconds, now)

    async def _start_due_jobs(self, scope: Scope, now: str) -> None:
        jobs = await self._client.list_task_jobs(scope)
        deferred = sorted((job for each in jobs if (job := _read_deferred_job(each))), key=lambda job: job.due_time)
        newest_by_output = {job.output: job for job in deferred}
        for job in deferred:
            if newest_by_output[job.output] is not job:
                await self._write(job, self._client.delete_job(job.body), "deleted, a later one cleans the same output")
        due = [
            job
            for job in newest_by_output.values()
            if deadlines.has_passed(job.due_time, now) and not find_live_run(self._cache.finetunejobs, job.output.uri)
        ]
        for job in due[:_MAX_STARTS]:
            patch = self._client.patch_job(job.body, {"spec": {"suspend": False}})
            await self._write(job, patch, "resumed, it cleans the checkpoints of a deleted FineTuneJob")

    async def _write(self, job: _DeferredJob, request: Awaitable[object], result: str) -> None:
        """Send a request for one Job. What it cannot do now is tried again by the next poll."""
        meta = job.body["metadata"]
        try:
            await request
        except ApiError as error:
            log.warning("Job %s/%s could not be changed: %s", meta["namespace"], meta["name"], error)
        else:
            log.info("Job %s/%s: %s", meta["namespace"], meta["name"], result)


def _read_deferred_job(body: Body) -> _DeferredJob | None:
    """Return a suspended Job of a deleted FineTuneJob, or None for other Jobs."""
    if get_controller_ref(body) or is_being_deleted(body) or is_finished(body) or not is_job_suspended(body):
        return None
    config = read_task_config(body)
    clean = config.clean if config else None
    due_time = parse_timestamp(clean.not_before) if clean else None
    if config is None or clean is None or due_time is None:
        return None
    uri = clean.output_uri.rstrip("/")
    return _DeferredJob(body, _Output(body["metadata"]["namespace"], uri, config.storage.model_dump_json()), due_time)
