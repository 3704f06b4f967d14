"""When to look: with `kopf_setup` all that knows kopf, which gives process, login, watches and probes.

Handlers only feed the store and queue a key. kopf's high-level handlers are not used: they keep their state in
annotations, which any tenant can write, and its watches miss deletions across a re-list.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import kopf
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from finetune_operator import kopf_settings
from finetune_operator.api.objects import Body
from finetune_operator.controller import state_collector
from finetune_operator.controller.workers import WorkerPool, run_periodically
from finetune_operator.kopf_settings import log_in
from finetune_operator.kube.cache import InformerCache
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.leader_election import LeaderElector
from finetune_operator.kube.lease import LeaseLock
from finetune_operator.kube.lister import Lister, WatchedKind
from finetune_operator.kube.namespace_access import NamespaceRegistry, Scope
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError, Transport
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters
from finetune_operator.telemetry.health_server import HealthServer

log = logging.getLogger(__name__)

_WATCHES_SETTLED_SECONDS = 15.0
"""Seconds after which the watches run: what was deleted between the first list and their own is missed until then."""

_LIST_RETRY_SECONDS = 15.0
"""Seconds between two lists of a namespace whose last list failed."""

_MAX_WATCH_DELAY = 3.0
"""Seconds at most, by which the watches begin later; one who does not lead has no work and waits in vain."""


class Manager:
    """One replica: its store and watches, its part in the election, and its work while it leads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cache = InformerCache()
        self.namespaces = NamespaceRegistry(settings.watch_namespaces)
        self._watched_namespaces = kopf_settings.WatchedNamespaces(is_clusterwide=not settings.watch_namespaces)
        self._transport = Transport(settings.request_timeout)
        lease_lock = LeaseLock(self._transport, settings.lease_namespace, settings.lease_name)
        identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self.leader_elector = LeaderElector(lease_lock, identity, settings.lease_seconds)
        self._client = KubeClient(self._transport, self.leader_elector.is_leader)
        self._lister = Lister(self._client, self.cache, self.namespaces)
        self.workers = WorkerPool(self.cache, self._client, settings)
        self._server = HealthServer()
        self._tasks: list[asyncio.Task[None]] = []
        self._list_count = 0

    def build_kopf_arguments(self) -> dict[str, Any]:
        """Arguments of `kopf.run`."""
        return {
            "registry": self.build_registry(),
            "standalone": True,
            **self._watched_namespaces.build_kopf_arguments(),
        }

    def build_registry(self) -> kopf.OperatorRegistry:
        """kopf's registry with our handlers, and no others."""
        registry = kopf.OperatorRegistry()
        configure = partial(kopf_settings.configure_kopf, request_timeout=self.settings.request_timeout)
        kopf.on.startup(registry=registry, id="configure")(configure)
        kopf.on.startup(registry=registry, id="serve", errors=kopf.ErrorsMode.PERMANENT)(self.start_servers)
        kopf.on.startup(registry=registry, id="start", backoff=5)(self.start)
        kopf.on.cleanup(registry=registry, id="stop")(self.stop)
        kopf.on.login(registry=registry, id="log-in")(log_in)
        finetunejobs, jobs, pods = map(self._build_watch_handler, self._lister.kinds)
        kopf.on.event(*kopf_settings.FINETUNEJOBS, registry=registry, id="finetunejob")(finetunejobs)
        kopf.on.event(*kopf_settings.JOBS, registry=registry, id="job")(jobs)
        kopf.on.event(*kopf_settings.PODS, registry=registry, id="pod")(pods)
        return registry

    async def start_servers(self, **_: object) -> None:
        """Answer probes from the first moment on; a port that is taken ends the operator."""
        registry = CollectorRegistry()
        registry.register(self)
        await self._server.serve_health(self.settings.health_port, self.check_liveness, self.check_readiness)
        await self._server.serve_metrics(self.settings.metrics_port, registry)

    async def start(self, settings: kopf.OperatorSettings, **_: object) -> None:
        """List everything once, then stand for election. Without the CRD or the rights this raises, and kopf tries
        again. The watches begin afterwards, by listing everything once more; new work goes before that."""
        self._transport.open(lambda: log_in(settings))
        try:
            await self.leader_elector.observe_initial_leader()
            await self.resync()
        except BaseException as error:
            await self._transport.close()
            if isinstance(error, (ApiError, *CONNECTION_ERRORS)):  # told in a line, without a traceback
                raise kopf.TemporaryError(f"the first list: {type(error).__name__}: {error}", delay=5) from error
            raise
        interval = self.settings.resync_interval
        loops = {
            "election": self.leader_elector.run(self.run_as_leader),
            "resync": run_periodically(interval, self.resync, initial_delay=min(_WATCHES_SETTLED_SECONDS, interval)),
            "retry of lists": run_periodically(min(_LIST_RETRY_SECONDS, interval), self.retry_failed_lists),
        }
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        try:
            with suppress(TimeoutError):  # the watches begin all the same
                await asyncio.wait_for(self.workers.wait_for_new_work_done(), _MAX_WATCH_DELAY)
        except asyncio.CancelledError:  # kopf cleans nothing up after a start that was cut short
            await self.stop()
            raise

    async def run_as_leader(self) -> None:
        """Work. What another leader did between the first list and the watches no watch told, so it is listed first."""
        while self._list_count < 2 and not self.leader_elector.was_vacant():
            try:
                await self.resync()
            except (ApiError, *CONNECTION_ERRORS) as error:
                log.warning("the list before the work: %s: %s", type(error).__name__, error)
                await asyncio.sleep(1)
        await self.workers.run()

    async def stop(self, **_: object) -> None:
        """Cancel everything, then give the Lease back; what was begun is found again by the next leader."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self.leader_elector.release()
            await self._transport.close()
        await self._server.close()

    def check_liveness(self) -> dict[str, Any]:
        """Lists succeed and work ends; that the process is up says less: https://github.com/nolar/kopf/issues/1276."""
        list_age = self.namespaces.compute_silence_seconds()
        longest_processing = self.workers.queue.get_longest_processing() if self.workers.queue else 0.0
        if list_age > 3 * self.settings.resync_interval + 60:
            raise RuntimeError(f"no list has succeeded for {list_age:.0f} s")
        if longest_processing > 10 * self.settings.request_timeout:
            raise RuntimeError(f"a worker has been busy with one object for {longest_processing:.0f} s")
        if finished_tasks := [task.get_name() for task in self._tasks if task.done()]:
            raise RuntimeError(f"has ended: {', '.join(finished_tasks)}")
        role = "leader" if self.leader_elector.is_leader() else "standby"
        return {
            "role": role,
            "listedSecondsAgo": round(list_age, 1),
            "longestWorkSeconds": round(longest_processing, 1),
        }

    def check_readiness(self) -> dict[str, Any]:
        """Leads, or could at once: the store is filled, and the API server tells of the Lease."""
        if not self._tasks:
            raise RuntimeError("the first list has not succeeded yet")
        lease_silence = time.monotonic() - self.leader_elector.last_contact
        if lease_silence > 3 * self.settings.lease_seconds:
            raise RuntimeError(f"no word about the Lease for {lease_silence:.0f} s")
        if len(unreadable := self.namespaces.get_unreadable()) == len(self.namespaces.get_scopes()):
            raise RuntimeError(f"none of the watched namespaces can be read: {', '.join(sorted(unreadable))}")
        return self.check_liveness()

    def collect(self) -> Iterator[Metric]:
        """All metrics. Those of FineTuneJobs are the leader's alone, so that sums over replicas are right."""
        yield from counters.REGISTRY.collect()
        is_leader = self.leader_elector.is_leader()
        yield from state_collector.collect_operator_gauges(self.cache, self.workers.queue, is_leader, self.namespaces)
        if is_leader:
            yield from state_collector.collect_job_gauges(self.cache, self.settings.metrics_max_jobs)

    async def resync(self) -> None:
        """Repair what the watches missed, and look at everything again.

        Raises if no namespace answered. That all were refused is an answer: the operator waits until one is not.
        """
        listed_scopes = await self._list_and_enqueue(self.namespaces.get_scopes())
        if not listed_scopes and (errors := self.namespaces.get_list_errors()):
            raise errors[0]
        self._list_count += 1

    async def retry_failed_lists(self) -> None:
        """List the namespaces whose last list failed; work in those that can be read again begins by itself."""
        if failed_scopes := self.namespaces.get_failed_scopes():
            await self._list_and_enqueue(failed_scopes)

    async def _list_and_enqueue(self, scopes: Collection[Scope]) -> set[Scope]:
        listed_scopes = await self._lister.refresh(scopes)
        await self._watched_namespaces.replace_names(
            set(self.namespaces.get_names()) - self.namespaces.get_unreadable()
        )
        for key in self.cache.list_active_keys() if listed_scopes else ():
            if key.namespace in listed_scopes or None in listed_scopes:
                self.workers.enqueue(key, low_priority=True)
        return listed_scopes

    def _build_watch_handler(self, kind: WatchedKind) -> Callable[..., Awaitable[None]]:
        object_cache, get_key = kind.cache, kind.get_key
        event_counter = counters.WATCH_EVENTS.labels(kind.resource.plural)

        async def handle_event(event: kopf.RawEvent, **_: object) -> None:
            event_counter.inc()
            body: Body = {**event["object"]}
            if event["type"] == "DELETED":
                object_cache.delete(body)
            elif not object_cache.update(get_key(body), body):
                return
            self.workers.enqueue(get_key(body))

        return handle_event
