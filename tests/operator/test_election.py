"""Two replicas, real processes, against a real API server: one works, the other takes over, nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.operator.proxies import healthy
from tests.operator.replicas import once, pair

if TYPE_CHECKING:
    from tests.operator.replicas import Replica
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Record = Callable[[str, object], None]
RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
SECONDS = 15.0  # that a takeover may last


async def _start(world: World, name: str) -> None:
    """A run that waits for nothing."""
    await world.apply(name)
    await world.pod(name)
    await world.kubelet(RUNNING, name=f"{name}-1")
    await world.reason("PodRunning", name)


async def _nothing_was_done_twice(world: World, names: list[str]) -> None:
    assert sorted(each["metadata"]["name"] for each in await world.all("jobs")) == sorted(names)
    events = [each for each in await world.all("events") if each["involvedObject"]["kind"] == "FineTuneJob"]
    assert {each["involvedObject"]["name"] for each in events} == set(names)
    assert once(events, lambda each: (each["involvedObject"]["uid"], each["reason"]))


async def test_a_killed_leader_is_replaced(world: World, tmp_path: Path, record_property: Record) -> None:
    async with pair(world, tmp_path) as replicas:
        leader, standby = await replicas.settle()
        await _start(world, "before")
        assert standby.writes() == []
        killed = leader.send(signal.SIGKILL)
        await world.apply("meanwhile")
        seconds = await replicas.leads(standby) - killed
        await _start_seen(world, "meanwhile")
        await asyncio.sleep(1)
        await _nothing_was_done_twice(world, ["before", "meanwhile"])
        assert [path for _, path in standby.writes() if "before" in path] == []
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a killed leader was replaced after {seconds:.1f} s")
    assert seconds < SECONDS


async def _start_seen(world: World, name: str) -> None:
    await world.pod(name)
    await world.kubelet(RUNNING, name=f"{name}-1")
    await world.reason("PodRunning", name)


class Held:
    """Holds a leader's creation of a Job on its way until it is let go."""

    def __init__(self) -> None:
        self.waits, self.go = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def trouble(self, request: web.Request) -> None:
        """Runs in the proxy's thread."""
        if (request.method, request.path.rpartition("/")[2]) == ("POST", "jobs"):
            self._loop.call_soon_threadsafe(self.waits.set)
            while not self.go.is_set():
                await asyncio.sleep(0.02)


async def test_a_frozen_leader_is_replaced_and_does_not_write_when_it_wakes(
    world: World, tmp_path: Path, record_property: Record
) -> None:
    """It is frozen in the middle of its work: the request on its way does no harm, and no other follows."""
    async with pair(world, tmp_path, request_timeout=60) as replicas:
        leader, standby = await replicas.settle()
        held = Held()
        leader.proxy.trouble = held.trouble
        await world.apply("bot")
        await held.waits.wait()
        frozen = leader.send(signal.SIGSTOP)
        seconds = await replicas.leads(standby) - frozen
        await _start_seen(world, "bot")
        held.go.set()
        await asyncio.sleep(0.3)
        before = len(leader.writes())
        leader.send(signal.SIGCONT)
        assert await replicas.settle() == (standby, leader)
        await asyncio.sleep(2)
        assert leader.writes()[before:] == []
        await _start(world, "after")
        await _nothing_was_done_twice(world, ["bot", "after"])
        assert leader.writes()[before:] == []
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a frozen leader was replaced after {seconds:.1f} s")
    assert seconds < SECONDS


async def test_a_leader_that_is_stopped_is_replaced_at_once(
    world: World, tmp_path: Path, record_property: Record
) -> None:
    async with pair(world, tmp_path, lease_seconds=60) as replicas:
        leader, standby = await replicas.settle()
        await _start(world, "before")
        stopped = leader.send(signal.SIGTERM)
        seconds = await replicas.leads(standby, 60) - stopped
        assert await asyncio.to_thread(leader.process.wait, 10) == 0
        await _start(world, "after")
        await _nothing_was_done_twice(world, ["before", "after"])
    record_property("takeover_seconds", round(seconds, 1))
    print(f"a stopped leader was replaced after {seconds:.1f} s")
    assert seconds < SECONDS / 2


class Blindfold:
    """Holds back what kopf asks of Jobs and pods; the operator's own lists pass."""

    def __init__(self) -> None:
        self.is_off = False

    async def trouble(self, request: web.Request) -> None:
        """Runs in the proxy's thread."""
        while request.query.keys() & {"limit", "watch"} and request.path.endswith(("/jobs", "/pods")):
            if self.is_off:
                return
            await asyncio.sleep(0.02)


async def test_one_that_follows_before_its_watches_run_undoes_nothing(world: World, tmp_path: Path) -> None:
    """As in a rolling update: the new replica is ready, so the old one is stopped."""
    async with pair(world, tmp_path) as replicas:
        leader, standby = await replicas.settle()
        blindfold = Blindfold()
        standby.proxy.trouble = blindfold.trouble
        await _start(world, "before")
        await world.until(lambda: _lists_again(standby, world.path("finetunejobs")))
        leader.send(signal.SIGTERM)
        await replicas.leads(standby)
        await asyncio.sleep(1)
        blindfold.is_off = True
        await _start(world, "after")
        await _nothing_was_done_twice(world, ["before", "after"])
    assert [path for _, path in standby.writes() if "before" in path] == []


async def _lists_again(replica: Replica, path: str) -> bool:
    return replica.proxy.seen.count(("GET", path)) > 1


async def test_an_api_server_that_was_away_finds_one_leader_again(world: World, tmp_path: Path) -> None:
    async with pair(world, tmp_path, lease_seconds=4) as replicas:
        leader, standby = await replicas.settle()
        await _start(world, "before")
        for each in (leader, standby):
            each.proxy.trouble = _away
        await world.apply("meanwhile")
        await world.until(lambda: _nobody_leads(leader, standby))
        await asyncio.sleep(8)
        for each in (leader, standby):
            each.proxy.trouble = healthy
        await replicas.settle()
        await _start_seen(world, "meanwhile")
        await _nothing_was_done_twice(world, ["before", "meanwhile"])
        assert await _live(leader, standby)


async def _away(_: web.Request) -> None:
    raise ConnectionResetError


async def _nobody_leads(*replicas: Replica) -> bool:
    answers = [await each.ask("/healthz") for each in replicas]
    return all(status == 200 and "standby" in text for status, text in answers)


async def _live(*replicas: Replica) -> bool:
    return [(await each.ask("/healthz"))[0] for each in replicas] == [200] * len(replicas)
