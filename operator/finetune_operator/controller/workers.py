"""Workers that take keys from the work queue and reconcile them. Only the leader runs them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.controller import Controller, Poller
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.client import NotLeaderError
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError
from finetune_operator.telemetry import counters, logs

log = logging.getLogger(__name__)


class WorkerPool:
    """Reconciles the objects of all registered controllers while `run` runs. It starts with all objects."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._controllers: dict[str, Controller] = {}
        self.queue: WorkQueue | None = None
        """The work queue while `run` runs, otherwise None."""

    def register(self, controller: Controller) -> None:
        """Reconcile the objects of this controller's kind with it."""
        self._controllers[controller.kind] = controller

    def enqueue(self, key: ObjectKey, *, low_priority: bool = False) -> None:
        """Enqueue a key. Without leadership there is no queue, and nothing is done."""
        if self.queue:
            self.queue.add(key, low_priority=low_priority)

    async def run(self) -> None:
        """Reconcile until cancelled."""
        for poller in self._list_pollers():
            poller.reset()
        self.queue = WorkQueue()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._size):
                    tasks.create_task(self._run_worker(self.queue))
                await self._enqueue_all()
                for poller in self._list_pollers():
                    poll = partial(poller.poll, self.enqueue)
                    tasks.create_task(run_periodically("polling", poller.interval, poll))
        finally:
            self.queue.close()
            self.queue = None

    async def poll(self) -> None:
        """Run all pollers once."""
        await asyncio.gather(*(poller.poll(self.enqueue) for poller in self._list_pollers()))

    async def wait_for_new_work_done(self) -> None:
        """Wait until this replica is the leader and no high-priority key is queued."""
        while self.queue is None or self.queue.has_high_priority():
            await asyncio.sleep(0.02)

    async def _enqueue_all(self) -> None:
        """Enqueue new objects at once, and all others after a poll: without it, their progress would seem lost."""
        for controller in self._controllers.values():
            for key in controller.informer.list_new_keys():
                self.enqueue(key)
        await self.poll()
        for controller in self._controllers.values():
            for key in controller.informer.list_active_keys():
                self.enqueue(key, low_priority=True)

    def _list_pollers(self) -> list[Poller]:
        return [poller for controller in self._controllers.values() for poller in controller.pollers]

    async def _run_worker(self, queue: WorkQueue) -> None:
        while True:
            key = await queue.get()
            controller = self._controllers[key.kind]
            if key.namespace in controller.informer.unreadable_namespaces:  # enqueued again when it becomes readable
                queue.forget(key)
                queue.done(key)
                continue
            started = time.perf_counter()
            with logs.bind_object(key.namespace, key.name, controller.informer.get_uid(key)):
                result = await self._reconcile_key(queue, key, controller)
            counters.RECONCILES.labels(result).inc()
            counters.RECONCILE_SECONDS.observe(time.perf_counter() - started)

    async def _reconcile_key(self, queue: WorkQueue, key: ObjectKey, controller: Controller) -> str:
        """Reconcile a key once, and requeue it after an error or a delay. Return the result for the metrics."""
        try:
            requeue_after = await controller.reconciler.reconcile(key)
        except (ApiError, NotLeaderError, *CONNECTION_ERRORS) as error:
            log.warning("reconcile failed, requeuing: %s: %s", type(error).__name__, error)
            queue.add_rate_limited(key, error.retry_after if isinstance(error, ApiError) else 0)
            return _classify_error(error)
        except Exception:  # an object that triggers a bug must not block all others
            log.exception("unhandled error in reconcile, requeuing")
            queue.add_rate_limited(key)
            return "exception"
        finally:
            queue.done(key)
        queue.forget(key)
        if requeue_after is not None:
            queue.add_after(key, requeue_after)
        return "success"


def _classify_error(error: Exception) -> str:
    if isinstance(error, ApiError):
        return "conflict" if error.status == 409 else "refused"
    return "deposed" if isinstance(error, NotLeaderError) else "unanswered"


async def run_periodically(
    name: str, interval: float, action: Callable[[], Awaitable[None]], initial_delay: float | None = None
) -> None:
    """Run an action every `interval` seconds, for the first time after `initial_delay` seconds."""
    delay = interval if initial_delay is None else initial_delay
    while True:
        await asyncio.sleep(delay)
        delay = interval
        try:
            await action()
        except Exception:  # the next run may succeed, and the liveness probe fails if none does
            log.exception("%s failed", name)
