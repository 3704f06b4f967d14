"""What the leader alone does: workers on a queue of keys, and questions to running trainers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from finetune_operator.controller import progress_poller
from finetune_operator.controller.reconciler import Reconciler
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.cache import Body, Heard, Key, Store, name_key
from finetune_operator.kube.client import Cluster, NotLeadingError
from finetune_operator.kube.transport import NO_ANSWER, ApiError
from finetune_operator.observed import objects
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters, logs

log = logging.getLogger(__name__)


class Workers:
    """Reconciles, as long as `run` runs. Of what came before it looks at everything anew."""

    def __init__(self, store: Store, cluster: Cluster, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._reconciler = Reconciler(store, cluster, settings, cluster.now)
        self.queue: WorkQueue | None = None
        """While it runs."""

    def add(self, key: Key, *, routine: bool = False) -> None:
        """Have a key worked on; who does not lead has no work."""
        if self.queue:
            self.queue.add(key, routine=routine)

    async def run(self) -> None:
        """Until it is cancelled."""
        self._store.progress.clear()  # another may have heard and written more since
        self.queue = WorkQueue()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._settings.workers):
                    tasks.create_task(self._work(self.queue))
                await self._look_at_everything()
                tasks.create_task(every(self._settings.progress_interval, self.poll))
        finally:
            self.queue.close()
            self.queue = None

    async def new_work_is_done(self) -> None:
        """Wait until this replica leads and no key waits that is new."""
        while self.queue is None or self.queue.has_fresh():
            await asyncio.sleep(0.02)

    async def _look_at_everything(self) -> None:
        """New work at once; the rest when trainers were asked, lest their progress be taken for lost."""
        for body in self._store.finetunejobs:
            if not body.get("status", {}).get("conditions"):
                self.add(name_key(body))
        await self.poll()
        for key in self._store.open_keys():
            self.add(key, routine=True)

    async def poll(self) -> None:
        """Ask all running trainers how far they are, and queue those that moved."""
        running = list(self._running())
        if not running:
            return
        secrets.SystemRandom().shuffle(running)  # lest it be the same for whom there is no time
        async with progress_poller.session() as client:
            round_ = progress_poller.Round(client)
            with suppress(TimeoutError):
                async with asyncio.timeout(progress_poller.ROUND):
                    await asyncio.gather(*(self._ask(round_, key, pod) for key, pod in running))

    def _running(self) -> Iterator[tuple[Key, Body]]:
        """Of each run that goes on, the one pod that speaks for it. Anybody may set our label on pods."""
        for key in self._store.jobs.all_keys():
            if key[0] in self._store.unreadable:  # the pod's address may be another pod's by now
                continue
            body = self._store.finetunejob(key)
            job = self._store.job(body) if body and not objects.has_ended(body) else None
            if job is None:
                continue
            own = (pod for pod in self._store.pods.of(key) if objects.is_owned_by(pod, job["metadata"]["uid"]))
            pod = objects.newest(objects.leaders(own))
            if pod and objects.is_running(pod):
                yield key, pod

    async def _ask(self, round_: progress_poller.Round, key: Key, pod: Body) -> None:
        url = progress_poller.address(pod)
        found = await round_.ask(key[0], url) if url else None
        if found and progress_poller.differs(found, self._store.heard(key, pod)):
            self._store.progress[key] = Heard(pod["metadata"]["uid"], found)
            self.add(key)

    async def _work(self, queue: WorkQueue) -> None:
        while True:
            key = await queue.get()
            if key[0] in self._store.unreadable:  # all its keys are added when it can be read again
                queue.forget(key)
                queue.done(key)
                continue
            began = time.perf_counter()
            with logs.about(*key, self._uid(key)):
                result = await self._reconcile(queue, key)
            counters.RECONCILES.labels(result).inc()
            counters.RECONCILE_SECONDS.observe(time.perf_counter() - began)

    async def _reconcile(self, queue: WorkQueue, key: Key) -> str:
        """Work on one key, and see to it that it is worked on again if need be. How it went."""
        try:
            again = await self._reconciler.reconcile(key)
        except (ApiError, NotLeadingError, *NO_ANSWER) as error:
            log.warning("%s: %s", type(error).__name__, error)
            queue.retry(key, error.retry_after if isinstance(error, ApiError) else 0)
            return _result(error)
        except Exception:  # one poisoned object must not stop the others
            log.exception("this is a bug of the operator, or an object that it should have refused")
            queue.retry(key)
            return "exception"
        finally:
            queue.done(key)
        queue.forget(key)
        if again is not None:
            queue.add_after(key, again)
        return "success"

    def _uid(self, key: Key) -> str:
        body = self._store.finetunejob(key)
        return body["metadata"]["uid"] if body else ""


def _result(error: Exception) -> str:
    if isinstance(error, ApiError):
        return "conflict" if error.status == 409 else "refused"
    return "deposed" if isinstance(error, NotLeadingError) else "unanswered"


async def every(seconds: float, act: Callable[[], Awaitable[None]], first: float | None = None) -> None:
    """Act again and again, `first` after so many seconds."""
    wait = seconds if first is None else first
    while True:
        await asyncio.sleep(wait)
        wait = seconds
        try:
            await act()
        except Exception:  # the next turn may do better; the probe tells if none does
            log.exception("%s failed", act)
