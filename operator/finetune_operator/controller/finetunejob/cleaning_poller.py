"""Periodically enqueue the ended runs whose checkpoints are due, and resume the suspended Jobs of deleted runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import UTC

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
from finetune_trainer.contract import CleanTask

log = logging.getLogger(__name__)

_MAX_STARTS = 20
"""Maximum number of ended runs, and of suspended Jobs, that are started by one poll: after an upgrade or a long
retention thousands may be due."""


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
        """How often each due run was enqueued, so that runs that cannot be cleaned do not hold up others."""

    def reset(self) -> None:
        """Skip the next poll: the first reconciles of a new leader must not wait for it."""
        self._is_first_poll = True

    async def poll(self, enqueue: Callable[[ObjectKey], None]) -> None:
        """Enqueue due runs, and resume or delete due Jobs."""
        if self._is_first_poll or not self._retention_seconds:
            self._is_first_poll = False
            return
        now = self._client.now().astimezone(UTC).strftime(TIME_FORMAT)
        self._enqueue_due_runs(enqueue, now)
        for scope in set(self._list_scopes()) - self._cache.unreadable_namespaces:
            try:
                await self._start_due_jobs(scope, now)
            except (ApiError, *CONNECTION_ERRORS) as error:  # of this namespace alone
                log.warning("could not start the cleaning of %s: %s: %s", scope, type(error).__name__, error)

    def _enqueue_due_runs(self, enqueue: Callable[[ObjectKey], None], now: str) -> None:
        due_keys = [get_finetunejob_key(body) for body in self._cache.finetunejobs if self._is_due(body, now)]
        counts = {key: self._poll_count_by_key.get(key, 0) for key in due_keys}
        for key in sorted(due_keys, key=lambda key: counts[key])[:_MAX_STARTS]:
            counts[key] += 1
            enqueue(key)
        self._poll_count_by_key = counts

    def _is_due(self, body: Body, now: str) -> bool:
        if not is_finished(body) or not may_have_checkpoints(body):
            return False
        completion_time = parse_timestamp(body["status"].get("completionTime"))
        return completion_time is not None and deadlines.has_passed(completion_time + self._retention_seconds, now)

    async def _start_due_jobs(self, scope: Scope, now: str) -> None:
        due = [
            (job, task)
            for job in await self._client.list_task_jobs(scope)
            if (task := _read_deferred_task(job)) and deadlines.has_passed(parse_timestamp(task.not_before), now)
        ]
        for job, task in due[:_MAX_STARTS]:
            await self._start_job(job, task)

    async def _start_job(self, job: Body, task: CleanTask) -> None:
        name = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
        live_run = find_live_run(self._cache.finetunejobs, task.output_uri.rstrip("/"))
        try:
            if live_run:
                await self._client.delete_job(job)
                log.info(
                    "deleted the Job %s: FineTuneJob %s uses its output again", name, get_finetunejob_key(live_run)
                )
            else:
                await self._client.patch_job(job, {"spec": {"suspend": False}})
                log.info("resumed the Job %s, which cleans the checkpoints of a deleted FineTuneJob", name)
        except ApiError as error:
            if error.status not in (404, 409):  # deleted, or changed: the next poll sees it as it is
                raise


def _read_deferred_task(job: Body) -> CleanTask | None:
    """Return the task of a suspended Job of a deleted FineTuneJob."""
    if get_controller_ref(job) or is_being_deleted(job) or is_finished(job) or not is_job_suspended(job):
        return None
    config = read_task_config(job)
    return config.clean if config else None
