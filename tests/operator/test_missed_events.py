"""Watches that are cut, stall in silence, or tell late, twice and in disorder: the store follows the cluster anyway."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.operator.life import jobs_created, live
from tests.operator.proxies import healthy
from tests.operator.watches import Disordered

from finetune_operator import kopf_settings

if TYPE_CHECKING:
    from aiohttp import web
    from tests.operator.proxies import Trainer
    from tests.operator.watches import Watches
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


async def _start(world: World, name: str) -> None:
    await world.apply(name)
    await world.pod(name)
    await world.kubelet(RUNNING, name=f"{name}-1")
    await world.reason("PodRunning", name)


async def _vanishes(world: World, name: str) -> None:
    """Deleted by a person, and what it owned by the garbage collector."""
    await world.delete("finetunejobs", name)
    await world.delete("jobs", name)
    await world.call("DELETE", world.path("pods", f"{name}-1"), {"gracePeriodSeconds": 0})


async def _is_followed(world: World, operator: Manager) -> bool:
    """Whether the store holds what the cluster does, each at its version, and nothing else."""
    shelves = {"finetunejobs": operator.cache.finetunejobs, "jobs": operator.cache.jobs, "pods": operator.cache.pods}
    for plural, shelf in shelves.items():
        wanted = {(each["metadata"]["uid"], each["metadata"]["resourceVersion"]) for each in await world.all(plural)}
        if {(each["metadata"]["uid"], each["metadata"]["resourceVersion"]) for each in shelf} != wanted:
            return False
    return set(operator.cache.reported_progress) <= set(operator.cache.finetunejobs.list_keys())


def _paths(world: World, name: str, since: int) -> list[str]:
    return [path for method, path in world.proxy.seen[since:] if method != "GET" and name in path]


async def test_what_was_deleted_while_the_operator_was_away_is_left_alone(world: World) -> None:
    async with world.operator():
        for name in ("kept", "gone", "jobless"):
            await _start(world, name)
    await _vanishes(world, "gone")
    await world.delete("jobs", "jobless")
    await world.call("DELETE", world.path("pods", "jobless-1"), {"gracePeriodSeconds": 0})
    since = len(world.proxy.seen)
    async with world.operator() as operator:
        await world.reason("JobCreated", "jobless")
        await world.until(lambda: _is_followed(world, operator))
    assert {path for _, path in world.proxy.writes()[since:] if "gone" in path or "kept" in path} == set()
    assert _paths(world, "gone", since) == _paths(world, "kept", since) == []
    assert {each["metadata"]["name"] for each in await world.all("jobs")} == {"kept", "jobless"}


async def test_what_was_deleted_while_no_watch_ran_is_forgotten_by_the_next_list(
    world: World, watches: Watches, monkeypatch: pytest.MonkeyPatch, trainer: Trainer
) -> None:
    monkeypatch.setattr("finetune_operator.controller.progress_poller.PROGRESS_PORT", trainer.port)
    moved = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"  # else it stands still as soon as it is heard
    trainer.answer = {"stage": "Training", "percentage": 40, "step": 4, "lastUpdateTime": moved}
    async with world.operator() as operator:
        for name in ("kept", "gone"):
            await _start(world, name)
        await world.until(lambda: _is_heard(operator, world, "gone"))
        watches.mode = "expired"
        await _vanishes(world, "gone")
        since = len(world.proxy.seen)
        await world.until(lambda: _listed_again(world, since))
        watches.mode = "open"
        assert operator.cache.get_finetunejob((world.namespace, "gone"))  # kopf tells of no deletion across its lists
        since = len(world.proxy.seen)
        await operator.resync()
        await world.until(lambda: _is_followed(world, operator), 2)
        await asyncio.sleep(0.3)
    assert _paths(world, "gone", since) == []


async def _is_heard(operator: Manager, world: World, name: str) -> bool:
    return (world.namespace, name) in operator.cache.reported_progress


async def _listed_again(world: World, since: int) -> bool:
    return world.proxy.seen[since:].count(("GET", world.path("finetunejobs"))) >= 3


async def test_watches_that_stall_in_silence_cost_time_only(world: World, watches: Watches) -> None:
    async with world.operator(resync_interval=1.0):
        await _start(world, "before")
        watches.mode = "held"
        await _start(world, "meanwhile")
        await _vanishes(world, "before")
        await world.change({"suspend": True}, "meanwhile")
        await world.reason("Suspending", "meanwhile")
        watches.mode = "open"
    assert len(await world.all("jobs")) == 1


async def test_watches_that_stall_are_begun_anew(
    world: World, watches: Watches, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kopf_settings._WATCH_INACTIVITY_SECONDS <= 75
    monkeypatch.setattr("finetune_operator.kopf_settings._WATCH_INACTIVITY_SECONDS", 2.0)
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", 3600.0)  # no list helps
    async with world.operator(resync_interval=3600.0):
        await _start(world, "before")
        watches.mode = "old ones held"
        await _vanishes(world, "before")
        await _start(world, "meanwhile")


async def test_lists_that_stall_too_are_told_by_the_probe(world: World) -> None:
    async def held(request: web.Request) -> None:
        while stalled and request.method == "GET":
            await asyncio.sleep(0.02)

    stalled = True
    async with world.operator(resync_interval=1.0, request_timeout=1.0) as operator:
        await world.apply("before")
        await world.reason("JobCreated", "before")
        world.proxy.trouble = held
        operator.namespaces.states[world.namespace].last_contact -= 60  # as if a minute had passed
        assert operator.check_liveness()
        await world.until(lambda: _is_unwell(operator))
        stalled, world.proxy.trouble = False, healthy
        await world.until(lambda: _is_well(operator))
        await world.apply("after")
        await world.reason("JobCreated", "after")


async def _is_well(operator: Manager) -> bool:
    return not await _is_unwell(operator)


async def _is_unwell(operator: Manager) -> bool:
    try:
        operator.check_liveness()
    except RuntimeError as error:
        return "no list" in str(error)
    return False


async def test_late_repeated_and_disordered_events_make_nothing_twice_and_nothing_undone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", 3600.0)  # no list helps
    world.proxy.trouble = Disordered(world.proxy.target).trouble
    async with world.history() as history, world.operator(resync_interval=3600.0):
        end = await live(world)
    assert (end["phase"], end["attempts"], jobs_created(world)) == ("Complete", 2, 2)
    phases = [phase for phase, _ in itertools.groupby(status["phase"] for status in history if "phase" in status)]
    assert [each for each in phases if each != "Pending"] == ["Running", "Suspended", "Running", "Complete"]
    attempts = [status.get("attempts", 0) for status in history]
    assert attempts == sorted(attempts)
