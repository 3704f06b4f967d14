"""When to look: the only module that knows kopf, which gives process, login, watches and probes.

Handlers only feed the store and queue a key. kopf's high-level handlers are not used: they keep their state in
annotations, which any tenant can write, and its watches miss deletions across a re-list.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import aiohttp
import kopf

from finetune_operator import children, progress
from finetune_operator.api import GROUP, PLURAL, VERSION
from finetune_operator.cluster import FINETUNEJOBS, JOBS, PODS, ApiError, Cluster, Resource, load_configuration
from finetune_operator.reconcile import Reconciler
from finetune_operator.resources import JOB_LABEL
from finetune_operator.settings import Settings
from finetune_operator.store import Body, Heard, Key, Shelf, Store, key_of, name_key
from finetune_operator.work_queue import WorkQueue

log = logging.getLogger(__name__)

_FINETUNEJOBS = (GROUP, VERSION, PLURAL)
_JOBS = ("batch", "v1", "jobs")
_PODS = ("", "v1", "pods")


_SETTLED = 15.0
"""Seconds after which the watches run: what was deleted between the first list and their own is missed until then."""


class _NoDiffBase(kopf.DiffBaseStorage):
    """kopf reads its last-handled state for handlers that never use it: an annotation that any tenant may forge, so
    that a malformed one stops an object's events, and a deep copy of each body, half of the CPU time."""

    def build(self, **_: object) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: object) -> None:
        return None

    def store(self, **_: object) -> None:
        pass


class Operator:
    """Store, queue, workers and loops of one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store()
        self.queue = WorkQueue()
        self._kinds: tuple[tuple[Resource, Shelf, Callable[[Body], Key]], ...] = (
            (FINETUNEJOBS, self.store.finetunejobs, name_key),
            (JOBS, self.store.jobs, key_of),
            (PODS, self.store.pods, key_of),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._listed = time.monotonic()

    def registry(self) -> kopf.OperatorRegistry:
        """kopf's registry with our handlers, and no others."""
        registry = kopf.OperatorRegistry()
        kopf.on.startup(registry=registry, id="configure")(self.configure)
        kopf.on.startup(registry=registry, id="start", backoff=5)(self.start)
        kopf.on.cleanup(registry=registry, id="stop")(self.stop)
        kopf.on.probe(registry=registry, id="progress", errors=kopf.ErrorsMode.PERMANENT)(self.probe)
        kopf.on.login(registry=registry, id="service-account")(kopf.login_with_service_account)
        kopf.on.login(registry=registry, id="kubeconfig")(kopf.login_with_kubeconfig)
        kopf.on.event(*_FINETUNEJOBS, registry=registry, id="finetunejob")(self._watcher(self._kinds[0]))
        kopf.on.event(*_JOBS, registry=registry, id="job")(self._watcher(self._kinds[1]))
        kopf.on.event(*_PODS, registry=registry, id="pod")(self._watcher(self._kinds[2]))
        return registry

    def configure(self, settings: kopf.OperatorSettings, **_: object) -> None:
        """Everything of kopf that would wait for ever, write, or need more rights."""
        # Without timeouts a watch can hang in silence: https://github.com/nolar/kopf/issues/698
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        settings.watching.connect_timeout = 30
        settings.networking.request_timeout = self.settings.request_timeout
        settings.networking.connect_timeout = 10
        settings.watching.chunk_size = 500
        settings.watching.label_selectors[_JOBS] = JOB_LABEL
        settings.watching.label_selectors[_PODS] = JOB_LABEL
        settings.posting.enabled = False
        settings.peering.standalone = True  # a peer of equal priority pauses: https://github.com/nolar/kopf/issues/734
        settings.scanning.disabled = True  # it would list CRDs and namespaces
        settings.persistence.diffbase_storage = _NoDiffBase()
        settings.persistence.finalizer = f"{GROUP}/never-set"  # kopf takes its own off objects: nolar/kopf#664
        settings.queueing.idle_timeout = 1  # handlers are instant; each waiting worker is memory

    async def start(self, **_: object) -> None:
        """List everything once, then work. Without the CRD or the rights this raises, and kopf tries again."""
        self._cluster = Cluster(await load_configuration(), self.settings.request_timeout)
        try:
            await self.resync()
        except BaseException:
            await self._cluster.close()
            raise
        self._client = progress.session()
        reconciler = Reconciler(self.store, self._cluster, self.settings, lambda: datetime.now(UTC))
        loops = [self._work(reconciler) for _ in range(self.settings.workers)]
        loops.append(
            _every(self.settings.resync_interval, self.resync, first=min(_SETTLED, self.settings.resync_interval))
        )
        loops.append(_every(self.settings.progress_interval, self.poll))
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self, **_: object) -> None:
        """Cancel everything; what was begun is found again by the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.queue.close()
        if self._tasks:
            await self._client.close()
            await self._cluster.close()

    def probe(self, **_: object) -> dict[str, float]:
        """Lists succeed and work ends; that the process is up says less: https://github.com/nolar/kopf/issues/1276."""
        age, work = time.monotonic() - self._listed, self.queue.longest_work()
        if age > 3 * self.settings.resync_interval + 60:
            raise RuntimeError(f"no list has succeeded for {age:.0f} s")
        if work > 10 * self.settings.request_timeout:
            raise RuntimeError(f"a worker has been busy with one object for {work:.0f} s")
        if any(task.done() for task in self._tasks):
            raise RuntimeError("a worker has ended")
        return {"listedSecondsAgo": round(age, 1), "longestWorkSeconds": round(work, 1)}

    async def resync(self) -> None:
        """Repair what the watches missed, and look at everything again."""
        for resource, shelf, key in self._kinds:
            bodies, version = await self._cluster.list_all(resource, self.settings.watch_namespaces)
            shelf.replace(((key(body), body) for body in bodies), version)
        self._listed = time.monotonic()
        for each in self.store.finetunejobs.all_keys():
            self.queue.add(each, routine=True)

    async def poll(self) -> None:
        """Ask all running trainers at once how far they are, and queue those that moved."""
        await asyncio.gather(*(self._ask(pod) for pod in children.leaders(self.store.pods) if children.is_running(pod)))

    async def _ask(self, pod: Body) -> None:
        key, url = key_of(pod), progress.address(pod)
        found = await progress.fetch(self._client, url) if url else None
        if found and progress.differs(found, self.store.heard(key, pod)):
            self.store.progress[key] = Heard(pod["metadata"]["uid"], found)
            self.queue.add(key)

    def _watcher(self, kind: tuple[Resource, Shelf, Callable[[Body], Key]]) -> Callable[..., Awaitable[None]]:
        _, shelf, key = kind

        async def seen(event: kopf.RawEvent, **_: object) -> None:
            body: Body = {**event["object"]}
            if event["type"] == "DELETED":
                shelf.remove(body)
            elif not shelf.put(key(body), body):
                return
            self.queue.add(key(body))

        return seen

    async def _work(self, reconciler: Reconciler) -> None:
        while True:
            key = await self.queue.get()
            try:
                again = await reconciler.reconcile(key)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s/%s: %s: %s", *key, type(error).__name__, error)
                self.queue.retry(key, error.retry_after if isinstance(error, ApiError) else 0)
            except Exception:  # one poisoned object must not stop the others
                log.exception("%s/%s", *key)
                self.queue.retry(key)
            else:
                self.queue.forget(key)
                if again is not None:
                    self.queue.add_after(key, again)
            finally:
                self.queue.done(key)


async def _every(seconds: float, act: Callable[[], Awaitable[None]], first: float | None = None) -> None:
    """Act again and again, `first` after so many seconds."""
    wait = seconds if first is None else first
    while True:
        await asyncio.sleep(wait)
        wait = seconds
        try:
            await act()
        except Exception:  # the next turn may do better; the probe tells if none does
            log.exception("%s failed", act)
