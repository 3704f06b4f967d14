"""What the leader alone does: workers on a queue of keys, and questions to running trainers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from finetune_operator.api.objects import Body
from finetune_operator.controller import progress_poller
from finetune_operator.controller.reconciler import Reconciler
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.cache import InformerCache, Key, ReportedProgress, get_object_key
from finetune_operator.kube.client import KubeClient, NotLeaderError
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.observed.objects import is_controlled_by, is_finished
from finetune_operator.observed.pod import find_newest_pod, is_trainer_running, list_rank_zero_pods
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters, logs

log = logging.getLogger(__name__)


class WorkerPool:
    """Reconciles, as long as `run` runs. Of what came before it looks at everything anew."""

    def __init__(self, cache: InformerCache, client: KubeClient, settings: Settings) -> None:
        self._cache = cache
        self._settings = settings
        self._reconciler = Reconciler(cache, client, settings, client.now)
        self.queue: WorkQueue | None = None
        """While it runs."""

    def enqueue(self, key: Key, *, low_priority: bool = False) -> None:
        """Have a key worked on; who does not lead has no work."""
        if self.queue:
            self.queue.add(key, low_priority=low_priority)

    async def run(self) -> None:
        """Until it is cancelled."""
        self._cache.reported_progress.clear()  # another may have heard and written more since
        self.queue = WorkQueue()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._settings.workers):
                    tasks.create_task(self._run_worker(self.queue))
                await self._enqueue_all()
                tasks.create_task(run_periodically(self._settings.progress_interval, self.poll_progress))
        finally:
            self.queue.close()
            self.queue = None

    async def wait_for_new_work_done(self) -> None:
        """Wait until this replica leads and no key waits that is new."""
        while self.queue is None or self.queue.has_high_priority():
            await asyncio.sleep(0.02)

    async def _enqueue_all(self) -> None:
        """New work at once; the rest when trainers were asked, lest their progress be taken for lost."""
        for body in self._cache.finetunejobs:
            if not body.get("status", {}).get("conditions"):
                self.enqueue(get_object_key(body))
        await self.poll_progress()
        for key in self._cache.list_active_keys():
            self.enqueue(key, low_priority=True)

    async def poll_progress(self) -> None:
        """Ask all running trainers how far they are, and queue those that moved."""
        running_pods = list(self._find_running_pods())
        if not running_pods:
            return
        secrets.SystemRandom().shuffle(running_pods)  # lest it be the same for whom there is no time
        async with progress_poller.create_session() as session:
            poller = progress_poller.ProgressPoller(session)
            with suppress(TimeoutError):
                async with asyncio.timeout(progress_poller.POLL_TIMEOUT):
                    await asyncio.gather(*(self._poll_pod(poller, key, pod) for key, pod in running_pods))

    def _find_running_pods(self) -> Iterator[tuple[Key, Body]]:
        """Of each run that goes on, the one pod that speaks for it. Anybody may set our label on pods."""
        for key in self._cache.jobs.list_keys():
            if key[0] in self._cache.unreadable_namespaces:  # the pod's address may be another pod's by now
                continue
            body = self._cache.get_finetunejob(key)
            job = self._cache.get_job(body) if body and not is_finished(body) else None
            if job is None:
                continue
            owned_pods = (
                pod for pod in self._cache.pods.list_by_key(key) if is_controlled_by(pod, job["metadata"]["uid"])
            )
            pod = find_newest_pod(list_rank_zero_pods(owned_pods))
            if pod and is_trainer_running(pod):
                yield key, pod

    async def _poll_pod(self, poller: progress_poller.ProgressPoller, key: Key, pod: Body) -> None:
        url = progress_poller.build_progress_url(pod)
        reported = await poller.poll(key[0], url) if url else None
        if reported and progress_poller.has_changed(reported, self._cache.get_last_progress(key, pod)):
            self._cache.reported_progress[key] = ReportedProgress(pod["metadata"]["uid"], reported)
            self.enqueue(key)

    async def _run_worker(self, queue: WorkQueue) -> None:
        while True:
            key = await queue.get()
            if key[0] in self._cache.unreadable_namespaces:  # all its keys are added when it can be read again
                queue.forget(key)
                queue.done(key)
                continue
            started = time.perf_counter()
            with logs.bind_object(*key, self._get_uid(key)):
                result = await self._reconcile_key(queue, key)
            counters.RECONCILES.labels(result).inc()
            counters.RECONCILE_SECONDS.observe(time.perf_counter() - started)

    async def _reconcile_key(self, queue: WorkQueue, key: Key) -> str:
        """Work on one key, and see to it that it is worked on again if need be. How it went."""
        try:
            requeue_after = await self._reconciler.reconcile(key)
        except (ApiError, NotLeaderError, *CONNECTION_ERRORS) as error:
            log.warning("%s: %s", type(error).__name__, error)
            queue.add_rate_limited(key, error.retry_after if isinstance(error, ApiError) else 0)
            return _classify_error(error)
        except Exception:  # one poisoned object must not stop the others
            log.exception("this is a bug of the operator, or an object that it should have refused")
            queue.add_rate_limited(key)
            return "exception"
        finally:
            queue.done(key)
        queue.forget(key)
        if requeue_after is not None:
            queue.add_after(key, requeue_after)
        return "success"

    def _get_uid(self, key: Key) -> str:
        body = self._cache.get_finetunejob(key)
        return body["metadata"]["uid"] if body else ""


def _classify_error(error: Exception) -> str:
    if isinstance(error, ApiError):
        return "conflict" if error.status == 409 else "refused"
    return "deposed" if isinstance(error, NotLeaderError) else "unanswered"


async def run_periodically(
    interval: float, action: Callable[[], Awaitable[None]], initial_delay: float | None = None
) -> None:
    """Act again and again, `first` after so many seconds."""
    delay = interval if initial_delay is None else initial_delay
    while True:
        await asyncio.sleep(delay)
        delay = interval
        try:
            await action()
        except Exception:  # the next turn may do better; the probe tells if none does
            log.exception("%s failed", action)
