"""Suspension, deadlines, time to live and lost attempts, on a real API server; tests play Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.operator.proxies import Trainer
    from tests.operator.world import World

pytestmark = pytest.mark.cluster


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _running(seconds: float = 5) -> dict[str, Any]:
    return {"running": {"startedAt": _ago(seconds)}}


def _ended(code: int, since: float = 5, until: float = 1, **outcome: Any) -> dict[str, Any]:
    message = json.dumps({"message": "", **outcome}) if outcome else ""
    return {"terminated": {"exitCode": code, "message": message, "startedAt": _ago(since), "finishedAt": _ago(until)}}


PREEMPTED = {
    "reason": "Preempted",
    "progress": {"stage": "Training", "percentage": 40, "lastCheckpointStep": 8, "lastUpdateTime": "t"},
}


async def _is_deleted(world: World) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _gone(world: World, plural: str) -> bool:
    return not await world.all(plural)


async def test_a_suspended_run_leaves_and_goes_on(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        start = _ago(5)
        await world.kubelet({"running": {"startedAt": start}})
        await world.reason("PodRunning")
        first = await world.get("jobs")

        await world.change({"suspend": True})
        status = await world.reason("Suspending")
        assert (status["phase"], await _is_deleted(world)) == ("Running", True)
        saved = {**PREEMPTED["progress"], "lastCheckpointTime": _ago(2)}  # type: ignore[dict-item]
        ended = _ended(143, **{**PREEMPTED, "progress": saved})
        ended["terminated"]["startedAt"] = start
        await world.kubelet(ended, "Failed")
        await world.until(lambda: _has(world, lastCheckpointStep=8))
        await world.collect()
        status = await world.reason("Suspended")
        assert (status["phase"], status["attempts"]) == ("Suspended", 1)
        assert status["activeSeconds"] >= 4
        assert await _gone(world, "jobs")

        await world.change({"suspend": False, "compute": {}})
        await world.reason("JobCreated")
        assert (await world.get("jobs"))["metadata"]["uid"] != first["metadata"]["uid"]
        await world.pod(index=2)
        await world.kubelet(_running(1), name="bot-2")
        status = await world.reason("PodRunning")
    assert (status["attempts"], status["lastCheckpointStep"]) == (2, 8)
    assert {each["type"] for each in status["conditions"]} == {"Running"}


async def _has(world: World, **wanted: Any) -> bool:
    status = (await world.get("finetunejobs")).get("status", {})
    return bool(status.items() >= wanted.items())


async def test_suspended_from_the_start_nothing_is_created(world: World) -> None:
    async with world.operator() as operator:
        await world.apply(spec={"suspend": True})
        await world.reason("Suspended")
        await operator.resync()
        assert await _gone(world, "jobs")
        await world.change({"compute": {"image": "mine"}})
        await world.change({"suspend": False})
        await world.reason("JobCreated")
    job = await world.get("jobs")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "mine"


async def test_resumed_before_the_pods_have_left_it_waits_for_them(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(_running())
        await world.reason("PodRunning")
        await world.change({"suspend": True})
        await world.reason("Suspending")
        await world.change({"suspend": False})
        await world.reason("JobPending")
        assert await _is_deleted(world)
        await world.collect()
        await world.reason("JobCreated")


async def test_a_run_that_ends_while_it_is_being_suspended_has_ended(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(_ended(0, reason="Completed"), "Succeeded")
        await world.job_ends("Complete")
        await world.change({"suspend": True})
        status = await world.reason("Completed")
        await asyncio.sleep(0.5)
        assert not await _is_deleted(world)
    assert status["phase"] == "Complete"


async def test_running_time_is_limited_by_the_job_itself(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"activeDeadlineSeconds": 1000})
        await world.pod()
        await world.job_starts(_ago(300))
        assert "activeDeadlineSeconds" not in (await world.get("jobs"))["spec"]  # nothing runs yet
        await world.kubelet(_running(100))
        limit = await world.until(lambda: _limit(world))
        assert abs(limit - (200 + 1000)) <= 2  # 200 s in which it waited are not the trainer's
        await world.kubelet(_ended(75, since=100, until=0, reason="StorageUnreachable"), "Failed")
        await world.reason("Retrying")
        await world.until(lambda: _unlimited(world))  # so that the Job does not count while none runs
        await asyncio.sleep(4)
        await world.pod(index=2)
        await world.kubelet(_running(0), name="bot-2")
        again = await world.until(lambda: _limit(world))
        assert abs(again - (limit + 4)) <= 2  # and so are those between two attempts
        await world.change({"activeDeadlineSeconds": None})
        await world.until(lambda: _unlimited(world))
        await world.job_ends("Failed", "DeadlineExceeded")
        status = await world.reason("DeadlineExceeded")
    assert status["phase"] == "Failed"


async def _limit(world: World) -> int:
    limit: int = (await world.get("jobs"))["spec"].get("activeDeadlineSeconds", 0)
    return limit


async def _unlimited(world: World) -> bool:
    return "activeDeadlineSeconds" not in (await world.get("jobs"))["spec"]


async def test_more_attempts_reach_the_job(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
        await world.change({"backoffLimit": 7})
        await world.until(lambda: _backoff(world, 7))


async def _backoff(world: World, limit: int) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == limit)


async def test_a_start_that_takes_too_long_ends_the_run_and_frees_its_place(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"startupDeadlineSeconds": 2})
        await world.pod()
        await world.job_starts(_ago(0))
        status = await world.reason("StartupDeadlineExceeded")
        await world.until(lambda: _is_deleted(world))
        await world.collect()
        await asyncio.sleep(0.5)
        assert await _gone(world, "jobs")
    assert status["phase"] == "Failed"


async def test_three_interruptions_in_vain_end_the_run(world: World) -> None:
    async with world.operator():
        await world.apply()
        for index in (1, 2, 3):
            await world.pod(index=index)
            running = _running(40 - 10 * index)
            await world.kubelet(running, name=f"bot-{index}")
            await world.until(lambda index=index: _has(world, attempts=index))
            ended = _ended(143, **PREEMPTED)
            ended["terminated"]["startedAt"] = running["running"]["startedAt"]
            await world.kubelet(ended, "Failed", f"bot-{index}")
        status = await world.reason("NoProgress")
        await world.until(lambda: _is_deleted(world))
    assert (status["phase"], status["attempts"]) == ("Failed", 3)


async def test_a_finished_run_is_deleted_when_its_time_has_come(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"ttlSecondsAfterFinished": 2})
        await world.apply("kept")
        for name in ("bot", "kept"):
            await world.pod(name)
            await world.kubelet(_ended(0, reason="Completed"), "Succeeded", f"{name}-1")
            await world.job_ends("Complete", name=name, at=_ago(0))
        await world.reason("Completed")
        await world.until(lambda: _only(world, "kept"))
    assert ("DELETE", world.path("finetunejobs", "kept")) not in world.proxy.seen


async def test_one_that_asks_for_it_is_deleted_at_its_end_by_one_request(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"ttlSecondsAfterFinished": 0})
        await world.apply("kept")
        await world.pod()
        await world.kubelet(_ended(0, reason="Completed"), "Succeeded")
        await world.job_ends("Complete", at=_ago(0))
        await world.until(lambda: _only(world, "kept"))
    assert world.proxy.seen.count(("DELETE", world.path("finetunejobs", "bot"))) == 1


async def _only(world: World, name: str) -> bool:
    return [each["metadata"]["name"] for each in await world.all("finetunejobs")] == [name]


async def test_a_run_that_stands_still_says_so(world: World, monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
    monkeypatch.setattr("finetune_operator.controller.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {"stage": "Training", "step": 4, "lastUpdateTime": _ago(2)}
    async with world.operator():
        await world.apply(spec={"training": {"stallSeconds": 10}})
        await world.pod()
        await world.kubelet(_running(8))
        await world.reason("ProgressStalled")
        trainer.answer = {"stage": "Training", "step": 5, "lastUpdateTime": _ago(0)}
        await world.reason("PodRunning")
