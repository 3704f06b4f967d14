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
from finetune_operator.controller import state_collector
from finetune_operator.controller.workers import Workers, every
from finetune_operator.kopf_settings import log_in
from finetune_operator.kube.cache import Body, Store
from finetune_operator.kube.client import Cluster
from finetune_operator.kube.leader_election import Election
from finetune_operator.kube.lease import Lease
from finetune_operator.kube.lister import Kind, Lister
from finetune_operator.kube.namespace_access import Namespaces, Scope
from finetune_operator.kube.transport import NO_ANSWER, ApiError, Transport
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters
from finetune_operator.telemetry.health_server import Server

log = logging.getLogger(__name__)

_SETTLED = 15.0
"""Seconds after which the watches run: what was deleted between the first list and their own is missed until then."""

_RETRY_INTERVAL = 15.0
"""Seconds between two lists of a namespace whose last list failed."""

_NEW_WORK_FIRST = 3.0
"""Seconds at most, by which the watches begin later; one who does not lead has no work and waits in vain."""


class Operator:
    """One replica: its store and watches, its part in the election, and its work while it leads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store()
        self.namespaces = Namespaces(settings.watch_namespaces)
        self._watched = kopf_settings.WatchedNamespaces(is_clusterwide=not settings.watch_namespaces)
        self._transport = Transport(settings.request_timeout)
        lease = Lease(self._transport, settings.lease_namespace, settings.lease_name)
        identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self.election = Election(lease, identity, settings.lease_seconds)
        self._cluster = Cluster(self._transport, self.election.is_leader)
        self._lister = Lister(self._cluster, self.store, self.namespaces)
        self.workers = Workers(self.store, self._cluster, settings)
        self._server = Server()
        self._tasks: list[asyncio.Task[None]] = []
        self._lists = 0

    def kopf_arguments(self) -> dict[str, Any]:
        """Arguments of `kopf.run`."""
        return {"registry": self.registry(), "standalone": True, **self._watched.arguments()}

    def registry(self) -> kopf.OperatorRegistry:
        """kopf's registry with our handlers, and no others."""
        registry = kopf.OperatorRegistry()
        configure = partial(kopf_settings.configure, request_timeout=self.settings.request_timeout)
        kopf.on.startup(registry=registry, id="configure")(configure)
        kopf.on.startup(registry=registry, id="serve", errors=kopf.ErrorsMode.PERMANENT)(self.serve)
        kopf.on.startup(registry=registry, id="start", backoff=5)(self.start)
        kopf.on.cleanup(registry=registry, id="stop")(self.stop)
        kopf.on.login(registry=registry, id="log-in")(log_in)
        finetunejobs, jobs, pods = map(self._watcher, self._lister.kinds)
        kopf.on.event(*kopf_settings.FINETUNEJOBS, registry=registry, id="finetunejob")(finetunejobs)
        kopf.on.event(*kopf_settings.JOBS, registry=registry, id="job")(jobs)
        kopf.on.event(*kopf_settings.PODS, registry=registry, id="pod")(pods)
        return registry

    async def serve(self, **_: object) -> None:
        """Answer probes from the first moment on; a port that is taken ends the operator."""
        registry = CollectorRegistry()
        registry.register(self)
        await self._server.serve_health(self.settings.health_port, self.liveness, self.readiness)
        await self._server.serve_metrics(self.settings.metrics_port, registry)

    async def start(self, settings: kopf.OperatorSettings, **_: object) -> None:
        """List everything once, then stand for election. Without the CRD or the rights this raises, and kopf tries
        again. The watches begin afterwards, by listing everything once more; new work goes before that."""
        self._transport.open(lambda: log_in(settings))
        try:
            await self.election.look()
            await self.resync()
        except BaseException as error:
            await self._transport.close()
            if isinstance(error, (ApiError, *NO_ANSWER)):  # told in a line, without a traceback
                raise kopf.TemporaryError(f"the first list: {type(error).__name__}: {error}", delay=5) from error
            raise
        interval = self.settings.resync_interval
        loops = {
            "election": self.election.run(self.lead),
            "resync": every(interval, self.resync, first=min(_SETTLED, interval)),
            "retry of lists": every(min(_RETRY_INTERVAL, interval), self.retry_lists),
        }
        self._tasks = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        try:
            with suppress(TimeoutError):  # the watches begin all the same
                await asyncio.wait_for(self.workers.new_work_is_done(), _NEW_WORK_FIRST)
        except asyncio.CancelledError:  # kopf cleans nothing up after a start that was cut short
            await self.stop()
            raise

    async def lead(self) -> None:
        """Work. What another leader did between the first list and the watches no watch told, so it is listed first."""
        while self._lists < 2 and not self.election.nobody_led():
            try:
                await self.resync()
            except (ApiError, *NO_ANSWER) as error:
                log.warning("the list before the work: %s: %s", type(error).__name__, error)
                await asyncio.sleep(1)
        await self.workers.run()

    async def stop(self, **_: object) -> None:
        """Cancel everything, then give the Lease back; what was begun is found again by the next leader."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            await self.election.resign()
            await self._transport.close()
        await self._server.close()

    def liveness(self) -> dict[str, Any]:
        """Lists succeed and work ends; that the process is up says less: https://github.com/nolar/kopf/issues/1276."""
        age = self.namespaces.silence()
        work = self.workers.queue.longest_work() if self.workers.queue else 0.0
        if age > 3 * self.settings.resync_interval + 60:
            raise RuntimeError(f"no list has succeeded for {age:.0f} s")
        if work > 10 * self.settings.request_timeout:
            raise RuntimeError(f"a worker has been busy with one object for {work:.0f} s")
        if ended := [task.get_name() for task in self._tasks if task.done()]:
            raise RuntimeError(f"has ended: {', '.join(ended)}")
        role = "leader" if self.election.is_leader() else "standby"
        return {"role": role, "listedSecondsAgo": round(age, 1), "longestWorkSeconds": round(work, 1)}

    def readiness(self) -> dict[str, Any]:
        """Leads, or could at once: the store is filled, and the API server tells of the Lease."""
        if not self._tasks:
            raise RuntimeError("the first list has not succeeded yet")
        silence = time.monotonic() - self.election.answered
        if silence > 3 * self.settings.lease_seconds:
            raise RuntimeError(f"no word about the Lease for {silence:.0f} s")
        if len(refused := self.namespaces.refused()) == len(self.namespaces.all()):
            raise RuntimeError(f"none of the watched namespaces can be read: {', '.join(sorted(refused))}")
        return self.liveness()

    def collect(self) -> Iterator[Metric]:
        """All metrics. Those of FineTuneJobs are the leader's alone, so that sums over replicas are right."""
        yield from counters.REGISTRY.collect()
        leads = self.election.is_leader()
        yield from state_collector.operator_gauges(self.store, self.workers.queue, leads, self.namespaces)
        if leads:
            yield from state_collector.job_gauges(self.store, self.settings.metrics_max_jobs)

    async def resync(self) -> None:
        """Repair what the watches missed, and look at everything again.

        Raises if no namespace answered. That all were refused is an answer: the operator waits until one is not.
        """
        listed = await self._list(self.namespaces.all())
        if not listed and (errors := self.namespaces.errors()):
            raise errors[0]
        self._lists += 1

    async def retry_lists(self) -> None:
        """List the namespaces whose last list failed; work in those that can be read again begins by itself."""
        if unlisted := self.namespaces.unlisted():
            await self._list(unlisted)

    async def _list(self, scopes: Collection[Scope]) -> set[Scope]:
        listed = await self._lister.update(scopes)
        await self._watched.replace(set(self.namespaces.names()) - self.namespaces.refused())
        for key in self.store.open_keys() if listed else ():
            if key[0] in listed or None in listed:
                self.workers.add(key, routine=True)
        return listed

    def _watcher(self, kind: Kind) -> Callable[..., Awaitable[None]]:
        shelf, key = kind.shelf, kind.key
        events = counters.WATCH_EVENTS.labels(kind.resource.plural)

        async def seen(event: kopf.RawEvent, **_: object) -> None:
            events.inc()
            body: Body = {**event["object"]}
            if event["type"] == "DELETED":
                shelf.remove(body)
            elif not shelf.put(key(body), body):
                return
            self.workers.add(key(body))

        return seen
