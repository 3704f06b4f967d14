"""What happens before a watch tells of it, or is told by one watch before another: said all the same, and done once."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.status.deadlines import STARTUP_GRACE_SECONDS

if TYPE_CHECKING:
    from tests.operator.watches import Watches
    from tests.operator.world import World

    from finetune_operator.kube.cache import ObjectCache

pytestmark = pytest.mark.cluster


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _saved(step: int, start: str) -> dict[str, Any]:
    """How a trainer ends that was told to leave."""
    progress = {"stage": "Training", "percentage": 40, "lastUpdateTime": "t"}
    newest = {"lastCheckpointStep": step, "lastCheckpointTime": _ago(1)}
    message = json.dumps({"message": "", "reason": "Preempted", "progress": progress | newest})
    return {"terminated": {"exitCode": 143, "message": message, "startedAt": start, "finishedAt": _ago(0)}}


async def _runs(world: World) -> str:
    start = _ago(5)
    await world.apply()
    await world.pod()
    await world.kubelet({"running": {"startedAt": start}})
    await world.reason("PodRunning")
    return start


async def test_the_last_word_of_a_pod_that_left_with_its_job_is_heard(world: World, watches: Watches) -> None:
    """A kubelet deletes the pod at once: what was saved may be told by the deletion alone, and after the Job's."""
    async with world.operator() as operator:
        start = await _runs(world)
        watches.held_kind, watches.mode = "pods", "held"
        await world.change({"suspend": True})
        await world.reason("Suspending")
        await world.kubelet(_saved(8, start), "Failed")
        await world.collect()
        await world.until(lambda: _has_none(operator.cache.jobs))
        watches.mode = "open"
        status = await world.reason("Suspended")
        assert (status["attempts"], status["lastCheckpointStep"]) == (1, 8)
        assert status["activeSeconds"] >= 5
        await operator.resync()
        await world.change({"suspend": False})
        await world.pod(index=2)
        await world.kubelet({"running": {"startedAt": _ago(0)}}, name="bot-2")
        status = await world.reason("PodRunning")
    assert (status["attempts"], status["lastCheckpointStep"]) == (2, 8)


async def test_the_last_word_of_an_evicted_pod_is_heard(world: World, watches: Watches) -> None:
    async with world.operator():
        start = await _runs(world)
        watches.held_kind, watches.mode = "pods", "held"
        await world.kubelet(_saved(8, start), "Failed")
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        watches.mode = "open"
        status = await world.reason("Retrying")
        assert status["lastCheckpointStep"] == 8
        await world.pod(index=2)
        await world.kubelet({"running": {"startedAt": _ago(0)}}, name="bot-2")
        assert (await world.reason("PodRunning"))["attempts"] == 2


async def test_an_earlier_namesakes_pod_says_nothing_of_this_run(world: World, watches: Watches) -> None:
    async with world.operator() as operator:
        start = await _runs(world)
        await asyncio.sleep(1.1)  # times of creation are whole seconds
        watches.held_kind, watches.mode = "pods", "held"
        await world.delete("finetunejobs")
        await world.kubelet(_saved(8, start), "Failed")
        await world.delete("jobs")
        await world.apply(spec={"suspend": True})
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.until(lambda: _has_none(operator.cache.jobs))
        watches.mode = "open"
        status = await world.reason("Suspended")
        await world.until(lambda: _has_none(operator.cache.pods))
        await operator.resync()
        await asyncio.sleep(0.3)
        status = await world.reason("Suspended")
    assert status.keys() & {"attempts", "lastCheckpointStep", "activeSeconds"} == set()


async def _has_none(shelf: ObjectCache) -> bool:
    return len(shelf) == 0


async def test_one_that_is_deleted_at_its_end_is_not_deleted_again(world: World, watches: Watches) -> None:
    deletion = ("DELETE", world.path("finetunejobs", "bot"))
    async with world.operator() as operator:
        await world.apply(spec={"ttlSecondsAfterFinished": 0})
        await world.pod()
        await world.kubelet(_saved(8, _ago(5)), "Failed")
        watches.held_kind, watches.mode = "finetunejobs", "held"
        await world.job_ends("Complete", at=_ago(0))
        await world.until(lambda: _was_seen(world, deletion))
        for _ in range(3):
            await asyncio.sleep(0.2)
            operator.workers.enqueue((world.namespace, "bot"))
        watches.mode = "open"
        await world.until(lambda: _has_none(operator.cache.finetunejobs))
    assert world.proxy.seen.count(deletion) == 1


async def _was_seen(world: World, request: tuple[str, str]) -> bool:
    return request in world.proxy.seen


async def test_the_result_of_a_second_attempt_is_read_though_its_pod_is_not_seen_to_end(
    world: World, watches: Watches
) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(_saved(8, _ago(9)), "Failed")
        await world.reason("Retrying")
        await world.pod(index=2)
        start = _ago(0)
        await world.kubelet({"running": {"startedAt": start}}, name="bot-2")
        await world.reason("PodRunning")
        watches.held_kind, watches.mode = "pods", "held"
        word = json.dumps({"reason": "Completed", "message": "published"})
        end = {"exitCode": 0, "message": word, "startedAt": start, "finishedAt": _ago(0)}
        await world.kubelet({"terminated": end}, "Succeeded", "bot-2")
        await world.job_ends("Complete", at=_ago(0))
        status = await world.reason("Completed")
        watches.mode = "open"
    assert (status["phase"], status["attempts"]) == ("Complete", 2)


async def test_a_pod_whose_job_was_deleted_by_hand_is_accounted_for(world: World) -> None:
    """Deleted in the background the Job is gone at once, and the pod saves its work."""
    async with world.operator():
        start = await _runs(world)
        await world.delete("jobs")
        await world.reason("JobPending")
        await asyncio.sleep(2)
        await world.kubelet(_saved(8, start), "Failed")
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.pod(index=2)
        await world.kubelet({"running": {"startedAt": _ago(0)}}, name="bot-2")
        status = await world.reason("PodRunning")
        while status["attempts"] < 2:
            status = await world.reason("PodRunning")
    assert (status["lastCheckpointStep"], status.get("interruptions", 0)) == (8, 0)
    assert status["activeSeconds"] >= 6


async def test_an_end_that_only_the_answer_to_a_change_told_is_seen(
    world: World, watches: Watches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch then tells of nothing that is newer."""
    monkeypatch.setattr(
        "finetune_operator.manager._WATCHES_SETTLED_SECONDS", 60.0
    )  # the list that would find it comes later
    key = world.namespace, "bot"
    async with world.operator() as operator:
        start = await _runs(world)
        await asyncio.sleep(STARTUP_GRACE_SECONDS + 1)  # by then no look is due that was planned before
        word = json.dumps({"reason": "Completed", "message": "published"})
        end = {"exitCode": 0, "message": word, "startedAt": start, "finishedAt": _ago(0)}
        await world.kubelet({"terminated": end}, "Succeeded")
        watches.held_kind, watches.mode = "jobs", "held"
        edited = await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"backoffLimit": 9}})
        await world.job_ends("Complete", at=_ago(0))
        operator.cache.jobs.update(key, edited)
        operator.workers.enqueue(key)
        status = await world.reason("Completed")
        watches.mode = "open"
    assert status["phase"] == "Complete"
