"""Two replicas as processes with a real API server: one leads, the other takes over, nothing is written twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.fault_proxy import pass_through
from tests.support.operator.replicas import are_distinct, run_replica_pair

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness
    from tests.support.operator.replicas import Replica

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Record = Callable[[str, object], None]
RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
MAX_TAKEOVER_SECONDS = 15.0  # that a takeover may last


async def _start_run(world: NamespaceHarness, name: str) -> None:
    """Start a run."""
    await world.create_finetunejob(name)
    await world.create_pod(name)
    await world.report_container_state(RUNNING, name=f"{name}-1")
    await world.wait_for_reason("PodRunning", name)


async def _assert_no_duplicates(world: NamespaceHarness, names: list[str]) -> None:
    assert sorted(job["metadata"]["name"] for job in await world.list_objects("jobs")) == sorted(names)
    events = [event for event in await world.list_objects("events") if event["involvedObject"]["kind"] == "FineTuneJob"]
    assert {event["involvedObject"]["name"] for event in events} == set(names)
    assert are_distinct(events, lambda event: (event["involvedObject"]["uid"], event["reason"]))


async def test_leader_killed_standby_takes_over(
    world: NamespaceHarness, tmp_path: Path, record_property: Record
) -> None:
    async with run_replica_pair(world, tmp_path) as replicas:
        leader, standby = await replicas.wait_for_one_leader()
        await _start_run(world, "before")
        assert standby.list_writes() == []
        killed = leader.send_signal(signal.SIGKILL)
        await world.create_finetunejob("meanwhile")
        seconds = await replicas.wait_until_leader(standby) - killed
        await _start_existing_run(world, "meanwhile")
        await asyncio.sleep(1)
        await _assert_no_duplicates(world, ["before", "meanwhile"])
        assert [path for _, path in standby.list_writes() if "before" in path] == []
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a killed leader was replaced after {seconds:.1f} s")
    assert seconds < MAX_TAKEOVER_SECONDS


async def _start_existing_run(world: NamespaceHarness, name: str) -> None:
    await world.create_pod(name)
    await world.report_container_state(RUNNING, name=f"{name}-1")
    await world.wait_for_reason("PodRunning", name)


class JobCreationHold:
    """Delays a leader's request to create a Job until it is released."""

    def __init__(self) -> None:
        self.reached, self.release = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def intercept(self, request: web.Request) -> None:
        """Runs in the proxy's thread."""
        if (request.method, request.path.rpartition("/")[2]) == ("POST", "jobs"):
            self._loop.call_soon_threadsafe(self.reached.set)
            while not self.release.is_set():
                await asyncio.sleep(0.02)


async def test_leader_frozen_standby_takes_over_and_old_leader_never_writes(
    world: NamespaceHarness, tmp_path: Path, record_property: Record
) -> None:
    """The leader is frozen during a reconcile. Its request in flight does no harm, and no other follows."""
    async with run_replica_pair(world, tmp_path, request_timeout=60) as replicas:
        leader, standby = await replicas.wait_for_one_leader()
        held = JobCreationHold()
        leader.proxy.interceptor = held.intercept
        await world.create_finetunejob("bot")
        await held.reached.wait()
        frozen = leader.send_signal(signal.SIGSTOP)
        seconds = await replicas.wait_until_leader(standby) - frozen
        await _start_existing_run(world, "bot")
        held.release.set()
        await asyncio.sleep(0.3)
        before = len(leader.list_writes())
        leader.send_signal(signal.SIGCONT)
        assert await replicas.wait_for_one_leader() == (standby, leader)
        await asyncio.sleep(2)
        assert leader.list_writes()[before:] == []
        await _start_run(world, "after")
        await _assert_no_duplicates(world, ["bot", "after"])
        assert leader.list_writes()[before:] == []
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a frozen leader was replaced after {seconds:.1f} s")
    assert seconds < MAX_TAKEOVER_SECONDS


async def test_leader_stopped_standby_takes_over_at_once(
    world: NamespaceHarness, tmp_path: Path, record_property: Record
) -> None:
    async with run_replica_pair(world, tmp_path, lease_seconds=60) as replicas:
        leader, standby = await replicas.wait_for_one_leader()
        await _start_run(world, "before")
        stopped = leader.send_signal(signal.SIGTERM)
        seconds = await replicas.wait_until_leader(standby, 60) - stopped
        assert await asyncio.to_thread(leader.process.wait, 10) == 0
        await _start_run(world, "after")
        await _assert_no_duplicates(world, ["before", "after"])
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a stopped leader was replaced after {seconds:.1f} s")
    assert seconds < MAX_TAKEOVER_SECONDS / 2


class ListWatchBlock:
    """Delays kopf's requests for Jobs and pods. The operator's own lists pass."""

    def __init__(self) -> None:
        self.is_off = False

    async def intercept(self, request: web.Request) -> None:
        """Runs in the proxy's thread."""
        while request.query.keys() & {"limit", "watch"} and request.path.endswith(("/jobs", "/pods")):
            if self.is_off:
                return
            await asyncio.sleep(0.02)


async def test_standby_leads_before_watches_start_keeps_existing_runs(world: NamespaceHarness, tmp_path: Path) -> None:
    """As in a rolling update, the old replica is stopped as soon as the new one is ready."""
    async with run_replica_pair(world, tmp_path) as replicas:
        leader, standby = await replicas.wait_for_one_leader()
        blindfold = ListWatchBlock()
        standby.proxy.interceptor = blindfold.intercept
        await _start_run(world, "before")
        await world.wait_until(lambda: _has_listed_again(standby, world.path("finetunejobs")))
        leader.send_signal(signal.SIGTERM)
        await replicas.wait_until_leader(standby)
        await asyncio.sleep(1)
        blindfold.is_off = True
        await _start_run(world, "after")
        await _assert_no_duplicates(world, ["before", "after"])
    assert [path for _, path in standby.list_writes() if "before" in path] == []


async def _has_listed_again(replica: Replica, path: str) -> bool:
    return replica.proxy.requests.count(("GET", path)) > 1


async def test_api_server_returns_after_outage_elects_one_leader(world: NamespaceHarness, tmp_path: Path) -> None:
    async with run_replica_pair(world, tmp_path, lease_seconds=4) as replicas:
        leader, standby = await replicas.wait_for_one_leader()
        await _start_run(world, "before")
        for replica in (leader, standby):
            replica.proxy.interceptor = _refuse_connection
        await world.create_finetunejob("meanwhile")
        await world.wait_until(lambda: _are_all_standby(leader, standby))
        await asyncio.sleep(8)
        for replica in (leader, standby):
            replica.proxy.interceptor = pass_through
        await replicas.wait_for_one_leader()
        await _start_existing_run(world, "meanwhile")
        await _assert_no_duplicates(world, ["before", "meanwhile"])
        assert await _are_all_alive(leader, standby)


async def _refuse_connection(_: web.Request) -> None:
    raise ConnectionResetError


async def _are_all_standby(*replicas: Replica) -> bool:
    answers = [await replica.fetch("/healthz") for replica in replicas]
    return all(status == 200 and "standby" in text for status, text in answers)


async def _are_all_alive(*replicas: Replica) -> bool:
    return [(await replica.fetch("/healthz"))[0] for replica in replicas] == [200] * len(replicas)
