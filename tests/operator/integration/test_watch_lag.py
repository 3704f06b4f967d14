"""Changes that a watch reports late, or one watch before another, are reported correctly and handled once."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_key, get_cache, seconds_ago

from finetune_operator.status.deadlines import STARTUP_GRACE_SECONDS

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness
    from tests.support.operator.watch_interceptors import WatchGate

    from finetune_operator.kube.cache import ObjectCache

pytestmark = pytest.mark.cluster


def _preempted_state(step: int, start: str) -> dict[str, Any]:
    """Return the state of a trainer container after SIGTERM."""
    progress = {"stage": "Training", "percentage": 40, "lastUpdateTime": "t"}
    checkpoint = {"lastCheckpointStep": step, "lastCheckpointTime": seconds_ago(1)}
    message = json.dumps({"message": "", "reason": "Preempted", "progress": progress | checkpoint})
    return {"terminated": {"exitCode": 143, "message": message, "startedAt": start, "finishedAt": seconds_ago(0)}}


async def _start_run(world: NamespaceHarness) -> str:
    start = seconds_ago(5)
    await world.create_finetunejob()
    await world.create_pod()
    await world.report_container_state({"running": {"startedAt": start}})
    await world.wait_for_reason("PodRunning")
    return start


async def test_reconciler_pod_deleted_with_job_reads_termination_message(
    world: NamespaceHarness, watches: WatchGate
) -> None:
    """A kubelet may delete the pod at once, so that only its deletion event contains the termination message."""
    async with world.run_operator() as operator:
        start = await _start_run(world)
        watches.held_plural, watches.mode = "pods", "held"
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
        await world.report_container_state(_preempted_state(8, start), "Failed")
        await world.finish_job_deletion()
        await world.wait_until(lambda: _is_empty(get_cache(operator).jobs))
        watches.mode = "open"
        status = await world.wait_for_reason("Suspended")
        assert (status["attempts"], status["lastCheckpointStep"]) == (1, 8)
        assert status["activeSeconds"] >= 5
        await operator.resync()
        await world.patch_spec({"suspend": False})
        await world.create_pod(index=2)
        await world.report_container_state({"running": {"startedAt": seconds_ago(0)}}, name="bot-2")
        status = await world.wait_for_reason("PodRunning")
    assert (status["attempts"], status["lastCheckpointStep"]) == (2, 8)


async def test_reconciler_pod_evicted_reads_termination_message(world: NamespaceHarness, watches: WatchGate) -> None:
    async with world.run_operator():
        start = await _start_run(world)
        watches.held_plural, watches.mode = "pods", "held"
        await world.report_container_state(_preempted_state(8, start), "Failed")
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        watches.mode = "open"
        status = await world.wait_for_reason("Retrying")
        assert status["lastCheckpointStep"] == 8
        await world.create_pod(index=2)
        await world.report_container_state({"running": {"startedAt": seconds_ago(0)}}, name="bot-2")
        assert (await world.wait_for_reason("PodRunning"))["attempts"] == 2


async def test_reconciler_pod_of_earlier_finetunejob_is_ignored(world: NamespaceHarness, watches: WatchGate) -> None:
    async with world.run_operator() as operator:
        start = await _start_run(world)
        await asyncio.sleep(1.1)  # times of creation are whole seconds
        watches.held_plural, watches.mode = "pods", "held"
        await world.delete("finetunejobs")
        await world.report_container_state(_preempted_state(8, start), "Failed")
        await world.delete("jobs")
        await world.create_finetunejob(spec={"suspend": True})
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.wait_until(lambda: _is_empty(get_cache(operator).jobs))
        watches.mode = "open"
        status = await world.wait_for_reason("Suspended")
        await world.wait_until(lambda: _is_empty(get_cache(operator).pods))
        await operator.resync()
        await asyncio.sleep(0.3)
        status = await world.wait_for_reason("Suspended")
    assert status.keys() & {"attempts", "lastCheckpointStep", "activeSeconds"} == set()


async def _is_empty(shelf: ObjectCache) -> bool:
    return len(shelf) == 0


async def test_reconciler_ttl_zero_with_lagging_watch_deletes_once(world: NamespaceHarness, watches: WatchGate) -> None:
    deletion = ("DELETE", world.path("finetunejobs", "bot"))
    async with world.run_operator() as operator:
        await world.create_finetunejob(spec={"ttlSecondsAfterFinished": 0})
        await world.create_pod()
        await world.report_container_state(_preempted_state(8, seconds_ago(5)), "Failed")
        watches.held_plural, watches.mode = "finetunejobs", "held"
        await world.report_job_end("Complete", end_time=seconds_ago(0))
        await world.wait_until(lambda: _was_requested(world, deletion))
        for _ in range(3):
            await asyncio.sleep(0.2)
            operator.workers.enqueue(build_key("bot", world.namespace))
        watches.mode = "open"
        await world.wait_until(lambda: _is_empty(get_cache(operator).finetunejobs))
    assert world.proxy.requests.count(deletion) == 1


async def _was_requested(world: NamespaceHarness, request: tuple[str, str]) -> bool:
    return request in world.proxy.requests


async def test_reconciler_pod_watch_held_reads_outcome_of_second_attempt(
    world: NamespaceHarness, watches: WatchGate
) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_preempted_state(8, seconds_ago(9)), "Failed")
        await world.wait_for_reason("Retrying")
        await world.create_pod(index=2)
        start = seconds_ago(0)
        await world.report_container_state({"running": {"startedAt": start}}, name="bot-2")
        await world.wait_for_reason("PodRunning")
        watches.held_plural, watches.mode = "pods", "held"
        message = json.dumps({"reason": "Completed", "message": "published"})
        terminated = {"exitCode": 0, "message": message, "startedAt": start, "finishedAt": seconds_ago(0)}
        await world.report_container_state({"terminated": terminated}, "Succeeded", "bot-2")
        await world.report_job_end("Complete", end_time=seconds_ago(0))
        status = await world.wait_for_reason("Completed")
        watches.mode = "open"
    assert (status["phase"], status["attempts"]) == ("Complete", 2)


async def test_reconciler_job_deleted_by_user_counts_its_pod(world: NamespaceHarness) -> None:
    """Deleted in the background, the Job disappears at once while its pod saves a checkpoint."""
    async with world.run_operator():
        start = await _start_run(world)
        await world.delete("jobs")
        await world.wait_for_reason("JobPending")
        await asyncio.sleep(2)
        await world.report_container_state(_preempted_state(8, start), "Failed")
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.create_pod(index=2)
        await world.report_container_state({"running": {"startedAt": seconds_ago(0)}}, name="bot-2")
        status = await world.wait_for_reason("PodRunning")
        while status["attempts"] < 2:
            status = await world.wait_for_reason("PodRunning")
    assert (status["lastCheckpointStep"], status.get("interruptions", 0)) == (8, 0)
    assert status["activeSeconds"] >= 6


async def test_reconciler_job_end_only_in_patch_response_is_observed(
    world: NamespaceHarness, watches: WatchGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch then reports nothing newer."""
    monkeypatch.setattr(
        "finetune_operator.manager._WATCHES_SETTLED_SECONDS", 60.0
    )  # the list that would find it comes later
    key = build_key("bot", world.namespace)
    async with world.run_operator() as operator:
        start = await _start_run(world)
        await asyncio.sleep(STARTUP_GRACE_SECONDS + 1)  # by then no earlier planned reconcile is due
        message = json.dumps({"reason": "Completed", "message": "published"})
        terminated = {"exitCode": 0, "message": message, "startedAt": start, "finishedAt": seconds_ago(0)}
        await world.report_container_state({"terminated": terminated}, "Succeeded")
        watches.held_plural, watches.mode = "jobs", "held"
        edited = await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"backoffLimit": 9}})
        await world.report_job_end("Complete", end_time=seconds_ago(0))
        get_cache(operator).jobs.update(key, edited)
        operator.workers.enqueue(key)
        status = await world.wait_for_reason("Completed")
        watches.mode = "open"
    assert status["phase"] == "Complete"
