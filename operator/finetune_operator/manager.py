"""One replica of the operator: watches, lists, leader election and the controllers of all kinds.

With `kopf_settings`, this is the only module that knows kopf, which provides the process, login and watches. Its
handlers only update a cache and enqueue a key. Its high-level handlers are not used: they keep their state in
annotations, which tenants can write, and miss deletions that happen between two lists.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import kopf
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from finetune_operator import kopf_settings
from finetune_operator.api.objects import Body
from finetune_operator.controller import gauges
from finetune_operator.controller.controller import Controller
from finetune_operator.controller.finetunejob.controller import build_controller
from finetune_operator.controller.finetuneschedule.controller import build_schedule_controller
from finetune_operator.controller.finetunesweep.controller import build_sweep_controller
from finetune_operator.controller.profile_store import ProfileStore
from finetune_operator.controller.workers import WorkerPool, run_periodically
from finetune_operator.kopf_settings import WatchLogin
from finetune_operator.kube.client import ApiResource, KubeClient
from finetune_operator.kube.informer import WatchedResource
from finetune_operator.kube.leader_election import LeaderElector
from finetune_operator.kube.lease import LeaseLock
from finetune_operator.kube.lister import Lister
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope
from finetune_operator.kube.namespace_selector import NamespaceSelector
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError, Transport
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters
from finetune_operator.telemetry.health_server import HealthServer

log = logging.getLogger(__name__)

_WATCHES_SETTLED_SECONDS = 15.0
"""Seconds until the first resync. The watches have started by then, so it notices objects that were deleted between
the first list and the lists of the watches."""

_LIST_RETRY_SECONDS = 15.0
"""Seconds between two lists of a namespace whose last list failed."""

_SELECT_NAMESPACES_SECONDS = 3.0
"""Seconds between two lists of the namespaces with the selected labels."""

_MAX_WATCH_DELAY = 3.0
"""Maximum number of seconds that the start of the watches is delayed, so that new FineTuneJobs are reconciled first. A
standby always waits that long."""


class Manager:
    """Runs the registered controllers while this replica is the leader. Their caches are always kept up to date."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._selects_namespaces = bool(settings.watch_namespace_selector)
        is_clusterwide = not settings.watch_namespaces and not self._selects_namespaces
        self.namespaces = NamespaceRegistry([None] if is_clusterwide else settings.watch_namespaces)
        self.controllers: dict[str, Controller] = {}
        """The registered controllers by kind."""
        self._watched_namespaces = kopf_settings.WatchedNamespaces(is_clusterwide)
        self._transport = Transport(settings.request_timeout)
        lease_lock = LeaseLock(self._transport, settings.lease_namespace, settings.lease_name)
        identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self.leader_elector = LeaderElector(lease_lock, identity, settings.lease_seconds)
        self._client = KubeClient(self._transport, self.leader_elector.is_leader)
        self._lister = Lister(self._client, self.namespaces)
        self._namespace_selector = NamespaceSelector(self._client, settings.watch_namespace_selector, self.namespaces)
        self.workers = WorkerPool(settings.workers)
        self._server = HealthServer()
        self._tasks: list[asyncio.Task[None]] = []
        self._list_count = 0
        profile_store = ProfileStore(settings.profiles_file)
        self.register(build_controller(self._client, settings, profile_store, self.namespaces.get_scopes))
        self.register(build_schedule_controller(self._client, settings, profile_store))
        self.register(build_sweep_controller(self._client, settings, profile_store))

    def register(self, controller: Controller) -> None:
        """Watch, list and reconcile the objects of a kind. Must be called before the manager starts."""
        self.controllers[controller.kind] = controller
        self._lister.add_informer(controller.informer)
        self.workers.register(controller)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT."""
        kopf_settings.limit_tls_buffers()
        kopf.run(**self.build_kopf_arguments())

    def build_kopf_arguments(self) -> dict[str, Any]:
        """Return the arguments of `kopf.run` and `kopf.operator`."""
        return {
            "registry": self.build_registry(),
            "standalone": True,
            **self._watched_namespaces.build_kopf_arguments(),
        }

    def build_registry(self) -> kopf.OperatorRegistry:
        """Return kopf's registry with the handlers of this manager only."""
        registry = kopf.OperatorRegistry()
        label_selectors = {
            watched.resource[:3]: watched.resource.label_selector
            for watched in self._list_watched_resources()
            if watched.resource.label_selector
        }
        configure = partial(
            kopf_settings.configure_kopf,
            request_timeout=self.settings.request_timeout,
            label_selectors=label_selectors,
        )
        kopf.on.startup(registry=registry, id="configure")(configure)
        kopf.on.startup(registry=registry, id="serve", errors=kopf.ErrorsMode.PERMANENT)(self.start_servers)
        kopf.on.startup(registry=registry, id="start", backoff=5)(self.start)
        kopf.on.cleanup(registry=registry, id="stop")(self.stop)
        kopf.on.login(registry=registry, id="log-in")(WatchLogin().log_in)
        for resource in dict.fromkeys(watched.resource for watched in self._list_watched_resources()):
            handler = self._build_watch_handler(resource)
            kopf.on.event(*resource[:3], registry=registry, id=f"watch-{resource.plural}")(handler)
        return registry

    async def start_servers(self, **_: object) -> None:
        """Answer probes from the start. A port that is in use ends the operator."""
        registry = CollectorRegistry()
        registry.register(self)
        await self._server.serve_health(self.settings.health_port, self.check_liveness, self.check_readiness)
        await self._server.serve_metrics(self.settings.metrics_port, registry)

    async def start(self, **_: object) -> None:
        """List all objects once, then take part in the leader election.

        Without a login, the CRD or the permissions this raises, and kopf retries it. The watches start afterwards and
        list all objects once more, so new work is done before that.
        """
        try:
            await self._transport.open()
            await self.leader_elector.observe_initial_leader()
            if self._selects_namespaces:
                await self._namespace_selector.update()
            await self.resync()
        except BaseException as error:
            await self._transport.close()
            if isinstance(error, (ApiError, *CONNECTION_ERRORS)):  # kopf logs it in a line, without a traceback
                raise kopf.TemporaryError(f"initial list failed: {type(error).__name__}: {error}", delay=5) from error
            raise
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in self._build_loops().items()]
        try:
            with suppress(TimeoutError):  # the watches start in any case
                await asyncio.wait_for(self.workers.wait_for_new_work_done(), _MAX_WATCH_DELAY)
        except asyncio.CancelledError:  # kopf does not run the cleanup handlers if the startup is cancelled
            await self.stop()
            raise

    def _build_loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what this replica does until it stops, by name."""
        interval = self.settings.resync_interval
        first_resync = min(_WATCHES_SETTLED_SECONDS, interval)
        loops = {
            "leader election": self.leader_elector.run(self.run_as_leader),
            "resync": run_periodically("resync", interval, self.resync, initial_delay=first_resync),
            "list retry": run_periodically("list retry", min(_LIST_RETRY_SECONDS, interval), self.retry_failed_lists),
        }
        if self._selects_namespaces:
            name = "selection of namespaces"
            loops[name] = run_periodically(name, _SELECT_NAMESPACES_SECONDS, self.select_namespaces)
        return loops

    async def run_as_leader(self) -> None:
        """Run the workers. First list all objects, if another leader may have changed them unnoticed.

        No watch reports what another leader did between the first list and the start of the watches.
        """
        while self._list_count < 2 and not self.leader_elector.was_vacant():
            try:
                await self.resync()
            except (ApiError, *CONNECTION_ERRORS) as error:
                log.warning("list after leader election failed, retrying: %s: %s", type(error).__name__, error)
                await asyncio.sleep(1)
        await self.workers.run()

    async def stop(self, **_: object) -> None:
        """Cancel all tasks, then release the Lease. The next leader continues interrupted work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self.leader_elector.release()
            await self._transport.close()
        await self._server.close()

    def check_liveness(self) -> dict[str, Any]:
        """Return details for the liveness probe. Raises `RuntimeError` if lists fail, a worker hangs or a task ended.

        The process may be up without doing its work: https://github.com/nolar/kopf/issues/1276.
        """
        list_age = self.namespaces.compute_silence_seconds()
        longest_processing = self.workers.queue.get_longest_processing() if self.workers.queue else 0.0
        if list_age > 3 * self.settings.resync_interval + 60:
            raise RuntimeError(f"no list has succeeded for {list_age:.0f} s")
        if longest_processing > 10 * self.settings.request_timeout:
            raise RuntimeError(f"a worker has been busy with one object for {longest_processing:.0f} s")
        if finished_tasks := [task.get_name() for task in self._tasks if task.done()]:
            raise RuntimeError(f"ended unexpectedly: {', '.join(finished_tasks)}")
        role = "leader" if self.leader_elector.is_leader() else "standby"
        return {
            "role": role,
            "listedSecondsAgo": round(list_age, 1),
            "longestWorkSeconds": round(longest_processing, 1),
        }

    def check_readiness(self) -> dict[str, Any]:
        """Return details for the readiness probe. Raises `RuntimeError` if this replica cannot lead."""
        if not self._tasks:
            raise RuntimeError("the first list has not succeeded yet")
        lease_silence = time.monotonic() - self.leader_elector.last_contact
        if lease_silence > 3 * self.settings.lease_seconds:
            raise RuntimeError(f"the Lease could not be read for {lease_silence:.0f} s")
        unreadable = self.namespaces.get_unreadable()
        if unreadable and len(unreadable) == len(self.namespaces.get_scopes()):
            raise RuntimeError(f"none of the watched namespaces can be read: {', '.join(sorted(unreadable))}")
        return self.check_liveness()

    def collect(self) -> Iterator[Metric]:
        """Return all metrics. Only the leader exposes those of objects, so that sums over replicas are right."""
        yield from counters.REGISTRY.collect()
        # Several informers watch FineTuneJobs. The first one has all of them.
        counts = {watched.resource.plural: len(watched.cache) for watched in reversed(self._list_watched_resources())}
        is_leader = self.leader_elector.is_leader()
        yield from gauges.collect_operator_gauges(counts, self.workers.queue, is_leader, self.namespaces)
        if is_leader:
            for controller in self.controllers.values():
                yield from controller.collect_metrics()

    async def resync(self) -> None:
        """List all namespaces to repair what the watches missed, and enqueue all active objects.

        Raises if no namespace could be listed, unless all were refused: then the operator waits for permissions.
        """
        listed_scopes = await self._list_and_enqueue(self.namespaces.get_scopes())
        if not listed_scopes and (errors := self.namespaces.get_list_errors()):
            raise errors[0]
        self._list_count += 1

    async def retry_failed_lists(self) -> None:
        """List the namespaces whose last list failed, and enqueue the objects of those that succeed."""
        if failed_scopes := self.namespaces.get_failed_scopes():
            await self._list_and_enqueue(failed_scopes)

    async def select_namespaces(self) -> None:
        """Leave namespaces that lost the selected labels alone, and list those that gained them."""
        added_names = await self._namespace_selector.try_update()
        self._lister.drop_unwatched()
        if added_names:
            await self._list_and_enqueue(added_names)
        await self._watched_namespaces.replace_names(self.namespaces.get_listed_names())

    async def _list_and_enqueue(self, scopes: Collection[Scope]) -> set[Scope]:
        listed_scopes = await self._lister.refresh(scopes)
        await self._watched_namespaces.replace_names(self.namespaces.get_listed_names())
        for controller in self.controllers.values() if listed_scopes else ():
            for key in controller.informer.list_active_keys():
                if key.namespace in listed_scopes or None in listed_scopes:
                    self.workers.enqueue(key, low_priority=True)
        return listed_scopes

    def _list_watched_resources(self) -> list[WatchedResource]:
        return [watched for controller in self.controllers.values() for watched in controller.informer.resources]

    def _build_watch_handler(self, resource: ApiResource) -> Callable[..., Awaitable[None]]:
        event_counter = counters.WATCH_EVENTS.labels(resource.plural)
        watchers = [watched for watched in self._list_watched_resources() if watched.resource == resource]

        async def handle_event(event: kopf.RawEvent, **_: object) -> None:
            event_counter.inc()
            body: Body = {**event["object"]}
            for watched in watchers:
                self._update_cache(watched, body, is_deleted=event["type"] == "DELETED")

        return handle_event

    def _update_cache(self, watched: WatchedResource, body: Body, *, is_deleted: bool) -> None:
        """Update one cache with an event, and enqueue the object that it concerns."""
        key = watched.get_key(body)
        if not self.namespaces.is_watched(key.namespace):
            return  # the watch is about to end
        if is_deleted:
            watched.cache.delete(body)
        elif not watched.cache.update(key, body):
            return
        if key.name:
            self.workers.enqueue(key)
