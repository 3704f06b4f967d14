"""The cache follows the cluster although watches break, stall, or deliver events late, twice or unordered."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import build_key, get_cache
from tests.support.operator.fault_proxy import pass_through
from tests.support.operator.full_lifecycle import count_jobs_created, play_full_lifecycle
from tests.support.operator.watch_interceptors import WatchShuffler

from finetune_operator import kopf_settings

if TYPE_CHECKING:
    from aiohttp import web
    from tests.support.operator.fault_proxy import FakeTrainer
    from tests.support.operator.namespace_harness import NamespaceHarness
    from tests.support.operator.watch_interceptors import WatchGate

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


async def _start_run(world: NamespaceHarness, name: str) -> None:
    await world.create_finetunejob(name)
    await world.create_pod(name)
    await world.report_container_state(RUNNING, name=f"{name}-1")
    await world.wait_for_reason("PodRunning", name)


async def _delete_run(world: NamespaceHarness, name: str) -> None:
    """Delete a run as its user and the objects it owns as the garbage collector."""
    await world.delete("finetunejobs", name)
    await world.delete("jobs", name)
    await world.call("DELETE", world.path("pods", f"{name}-1"), {"gracePeriodSeconds": 0})


async def _is_cache_in_sync(world: NamespaceHarness, operator: Manager) -> bool:
    """Return whether the cache contains exactly the objects of the cluster, with their versions."""
    caches = {
        "finetunejobs": get_cache(operator).finetunejobs,
        "jobs": get_cache(operator).jobs,
        "pods": get_cache(operator).pods,
    }
    for plural, cache in caches.items():
        expected = {
            (body["metadata"]["uid"], body["metadata"]["resourceVersion"]) for body in await world.list_objects(plural)
        }
        if {(body["metadata"]["uid"], body["metadata"]["resourceVersion"]) for body in cache} != expected:
            return False
    return set(get_cache(operator).reported_progress) <= set(get_cache(operator).finetunejobs.list_keys())


def _list_write_paths(world: NamespaceHarness, name: str, since: int) -> list[str]:
    return [path for method, path in world.proxy.requests[since:] if method != "GET" and name in path]


async def test_operator_objects_deleted_while_down_are_left_alone(world: NamespaceHarness) -> None:
    async with world.run_operator():
        for name in ("kept", "gone", "jobless"):
            await _start_run(world, name)
    await _delete_run(world, "gone")
    await world.delete("jobs", "jobless")
    await world.call("DELETE", world.path("pods", "jobless-1"), {"gracePeriodSeconds": 0})
    since = len(world.proxy.requests)
    async with world.run_operator() as operator:
        await world.wait_for_reason("JobCreated", "jobless")
        await world.wait_until(lambda: _is_cache_in_sync(world, operator))
    assert {path for _, path in world.proxy.list_writes()[since:] if "gone" in path or "kept" in path} == set()
    assert _list_write_paths(world, "gone", since) == _list_write_paths(world, "kept", since) == []
    assert {job["metadata"]["name"] for job in await world.list_objects("jobs")} == {"kept", "jobless"}


async def test_lister_object_deleted_without_watch_is_forgotten(
    world: NamespaceHarness, watches: WatchGate, monkeypatch: pytest.MonkeyPatch, trainer: FakeTrainer
) -> None:
    monkeypatch.setattr("finetune_operator.controller.finetunejob.progress_poller.PROGRESS_PORT", trainer.port)
    update_time = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"  # else it stands still as soon as it is heard
    trainer.answer = {"stage": "Training", "percentage": 40, "step": 4, "lastUpdateTime": update_time}
    async with world.run_operator() as operator:
        for name in ("kept", "gone"):
            await _start_run(world, name)
        await world.wait_until(lambda: _has_progress(operator, world, "gone"))
        watches.mode = "expired"
        await _delete_run(world, "gone")
        since = len(world.proxy.requests)
        await world.wait_until(lambda: _has_listed_again(world, since))
        watches.mode = "open"
        # kopf reports no deletion that happens between two of its lists
        assert get_cache(operator).get_finetunejob(build_key("gone", world.namespace))
        since = len(world.proxy.requests)
        await operator.resync()
        await world.wait_until(lambda: _is_cache_in_sync(world, operator), 2)
        await asyncio.sleep(0.3)
    assert _list_write_paths(world, "gone", since) == []


async def _has_progress(operator: Manager, world: NamespaceHarness, name: str) -> bool:
    return build_key(name, world.namespace) in get_cache(operator).reported_progress


async def _has_listed_again(world: NamespaceHarness, since: int) -> bool:
    return world.proxy.requests[since:].count(("GET", world.path("finetunejobs"))) >= 3


async def test_operator_watches_stalled_silently_resync_catches_up(world: NamespaceHarness, watches: WatchGate) -> None:
    async with world.run_operator(resync_interval=1.0):
        await _start_run(world, "before")
        watches.mode = "held"
        await _start_run(world, "meanwhile")
        await _delete_run(world, "before")
        await world.patch_spec({"suspend": True}, "meanwhile")
        await world.wait_for_reason("Suspending", "meanwhile")
        watches.mode = "open"
    assert len(await world.list_objects("jobs")) == 1


async def test_operator_watches_stalled_are_restarted(
    world: NamespaceHarness, watches: WatchGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kopf_settings._WATCH_INACTIVITY_SECONDS <= 75
    monkeypatch.setattr("finetune_operator.kopf_settings._WATCH_INACTIVITY_SECONDS", 2.0)
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", 3600.0)  # no list helps
    async with world.run_operator(resync_interval=3600.0):
        await _start_run(world, "before")
        watches.mode = "old ones held"
        await _delete_run(world, "before")
        await _start_run(world, "meanwhile")


async def test_liveness_lists_stalled_fails_until_they_recover(world: NamespaceHarness) -> None:
    async def stall_reads(request: web.Request) -> None:
        while stalled and request.method == "GET":
            await asyncio.sleep(0.02)

    stalled = True
    async with world.run_operator(resync_interval=1.0, request_timeout=1.0) as operator:
        await world.create_finetunejob("before")
        await world.wait_for_reason("JobCreated", "before")
        world.proxy.interceptor = stall_reads
        operator.namespaces.states[world.namespace].last_contact -= 60  # as if a minute had passed
        assert operator.check_liveness()
        await world.wait_until(lambda: _is_unhealthy(operator))
        stalled, world.proxy.interceptor = False, pass_through
        await world.wait_until(lambda: _is_healthy(operator))
        await world.create_finetunejob("after")
        await world.wait_for_reason("JobCreated", "after")


async def _is_healthy(operator: Manager) -> bool:
    return not await _is_unhealthy(operator)


async def _is_unhealthy(operator: Manager) -> bool:
    try:
        operator.check_liveness()
    except RuntimeError as error:
        return "no list" in str(error)
    return False


async def test_operator_events_late_repeated_reordered_completes_once(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.manager._WATCHES_SETTLED_SECONDS", 3600.0)  # no list helps
    world.proxy.interceptor = WatchShuffler(world.proxy.target).intercept
    async with world.record_status_history() as history, world.run_operator(resync_interval=3600.0):
        final_status = await play_full_lifecycle(world)
    assert (final_status["phase"], final_status["attempts"], count_jobs_created(world)) == ("Complete", 2, 2)
    phases = [phase for phase, _ in itertools.groupby(status["phase"] for status in history if "phase" in status)]
    assert [phase for phase in phases if phase != "Pending"] == ["Running", "Suspended", "Running", "Complete"]
    attempts = [status.get("attempts", 0) for status in history]
    assert attempts == sorted(attempts)
