"""Suspension, deadlines, TTL and lost attempts on a real API server. The tests act as Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.api_server import KUBERNETES_VERSIONS
from tests.support.operator.builders import seconds_ago

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster


def _running_state(seconds: float = 5) -> dict[str, Any]:
    return {"running": {"startedAt": seconds_ago(seconds)}}


def _terminated_state(code: int, since: float = 5, until: float = 1, **outcome: Any) -> dict[str, Any]:
    message = json.dumps({"message": "", **outcome}) if outcome else ""
    return {
        "terminated": {
            "exitCode": code,
            "message": message,
            "startedAt": seconds_ago(since),
            "finishedAt": seconds_ago(until),
        }
    }


PREEMPTED = {
    "reason": "Preempted",
    "progress": {"stage": "Training", "percentage": 40, "lastCheckpointStep": 8, "lastUpdateTime": "t"},
}


async def _is_job_deleting(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _has_none(world: NamespaceHarness, plural: str) -> bool:
    return not await world.list_objects(plural)


@pytest.mark.parametrize("kubernetes_version", KUBERNETES_VERSIONS)
async def test_run_suspended_deletes_job_and_resumes_with_new_job(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        start = seconds_ago(5)
        await world.report_container_state({"running": {"startedAt": start}})
        await world.wait_for_reason("PodRunning")
        first = await world.get("jobs")

        await world.patch_spec({"suspend": True})
        status = await world.wait_for_reason("Suspending")
        assert (status["phase"], await _is_job_deleting(world)) == ("Running", True)
        progress = {**PREEMPTED["progress"], "lastCheckpointTime": seconds_ago(2)}  # type: ignore[dict-item]
        terminated = _terminated_state(143, **{**PREEMPTED, "progress": progress})
        terminated["terminated"]["startedAt"] = start
        await world.report_container_state(terminated, "Failed")
        await world.wait_until(lambda: _has_status_fields(world, lastCheckpointStep=8))
        await world.finish_job_deletion()
        status = await world.wait_for_reason("Suspended")
        assert (status["phase"], status["attempts"]) == ("Suspended", 1)
        assert status["activeSeconds"] >= 4
        assert await _has_none(world, "jobs")

        await world.patch_spec({"suspend": False, "compute": {}})
        await world.wait_for_reason("JobCreated")
        assert (await world.get("jobs"))["metadata"]["uid"] != first["metadata"]["uid"]
        await world.create_pod(index=2)
        await world.report_container_state(_running_state(1), name="bot-2")
        status = await world.wait_for_reason("PodRunning")
    assert (status["attempts"], status["lastCheckpointStep"]) == (2, 8)
    assert {condition["type"] for condition in status["conditions"]} == {"Running"}


async def _has_status_fields(world: NamespaceHarness, **fields: Any) -> bool:
    status = (await world.get("finetunejobs")).get("status", {})
    return bool(status.items() >= fields.items())


async def test_run_suspended_from_start_creates_no_job(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await world.create_finetunejob(spec={"suspend": True})
        await world.wait_for_reason("Suspended")
        await operator.resync()
        assert await _has_none(world, "jobs")
        await world.patch_spec({"compute": {"image": "mine"}})
        await world.patch_spec({"suspend": False})
        await world.wait_for_reason("JobCreated")
    job = await world.get("jobs")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "mine"


async def test_run_resumed_while_pods_terminate_waits_for_pods(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_running_state())
        await world.wait_for_reason("PodRunning")
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
        await world.patch_spec({"suspend": False})
        await world.wait_for_reason("JobPending")
        assert await _is_job_deleting(world)
        await world.finish_job_deletion()
        await world.wait_for_reason("JobCreated")


async def test_run_ends_during_suspension_is_complete(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_terminated_state(0, reason="Completed"), "Succeeded")
        await world.report_job_end("Complete")
        await world.patch_spec({"suspend": True})
        status = await world.wait_for_reason("Completed")
        await asyncio.sleep(0.5)
        assert not await _is_job_deleting(world)
    assert status["phase"] == "Complete"


async def test_run_active_deadline_counts_only_running_time(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"activeDeadlineSeconds": 1000})
        await world.create_pod()
        await world.report_job_start(seconds_ago(300))
        assert "activeDeadlineSeconds" not in (await world.get("jobs"))["spec"]  # nothing runs yet
        await world.report_container_state(_running_state(100))
        limit = await world.wait_until(lambda: _get_active_deadline(world))
        assert abs(limit - (200 + 1000)) <= 2  # 200 s in which it waited are not the trainer's
        await world.report_container_state(
            _terminated_state(75, since=100, until=0, reason="StorageUnreachable"), "Failed"
        )
        await world.wait_for_reason("Retrying")
        await world.wait_until(lambda: _has_no_active_deadline(world))  # so that the Job does not count while none runs
        await asyncio.sleep(4)
        await world.create_pod(index=2)
        await world.report_container_state(_running_state(0), name="bot-2")
        second_limit = await world.wait_until(lambda: _get_active_deadline(world))
        assert abs(second_limit - (limit + 4)) <= 2  # and so are those between two attempts
        await world.patch_spec({"activeDeadlineSeconds": None})
        await world.wait_until(lambda: _has_no_active_deadline(world))
        await world.report_job_end("Failed", "DeadlineExceeded")
        status = await world.wait_for_reason("DeadlineExceeded")
    assert status["phase"] == "Failed"


async def _get_active_deadline(world: NamespaceHarness) -> int:
    limit: int = (await world.get("jobs"))["spec"].get("activeDeadlineSeconds", 0)
    return limit


async def _has_no_active_deadline(world: NamespaceHarness) -> bool:
    return "activeDeadlineSeconds" not in (await world.get("jobs"))["spec"]


async def test_run_backoff_limit_changed_patches_job(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        await world.patch_spec({"backoffLimit": 7})
        await world.wait_until(lambda: _has_backoff_limit(world, 7))


async def _has_backoff_limit(world: NamespaceHarness, limit: int) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == limit)


async def test_run_startup_deadline_exceeded_fails_and_deletes_job(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"startupDeadlineSeconds": 2})
        await world.create_pod()
        await world.report_job_start(seconds_ago(0))
        status = await world.wait_for_reason("StartupDeadlineExceeded")
        await world.wait_until(lambda: _is_job_deleting(world))
        await world.finish_job_deletion()
        await asyncio.sleep(0.5)
        assert await _has_none(world, "jobs")
    assert status["phase"] == "Failed"


async def test_run_three_interruptions_without_checkpoint_fails(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        for index in (1, 2, 3):
            await world.create_pod(index=index)
            running_state = _running_state(40 - 10 * index)
            await world.report_container_state(running_state, name=f"bot-{index}")
            await world.wait_until(lambda index=index: _has_status_fields(world, attempts=index))
            terminated = _terminated_state(143, **PREEMPTED)
            terminated["terminated"]["startedAt"] = running_state["running"]["startedAt"]
            await world.report_container_state(terminated, "Failed", f"bot-{index}")
        status = await world.wait_for_reason("NoProgress")
        await world.wait_until(lambda: _is_job_deleting(world))
    assert (status["phase"], status["attempts"]) == ("Failed", 3)


async def test_run_ttl_expired_is_deleted(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"ttlSecondsAfterFinished": 2})
        await world.create_finetunejob("kept")
        for name in ("bot", "kept"):
            await world.create_pod(name)
            await world.report_container_state(_terminated_state(0, reason="Completed"), "Succeeded", f"{name}-1")
            await world.report_job_end("Complete", name=name, end_time=seconds_ago(0))
        await world.wait_for_reason("Completed")
        await world.wait_until(lambda: _is_only_finetunejob(world, "kept"))
    assert ("DELETE", world.path("finetunejobs", "kept")) not in world.proxy.requests


async def test_run_ttl_zero_is_deleted_by_one_request(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"ttlSecondsAfterFinished": 0})
        await world.create_finetunejob("kept")
        await world.create_pod()
        await world.report_container_state(_terminated_state(0, reason="Completed"), "Succeeded")
        await world.report_job_end("Complete", end_time=seconds_ago(0))
        await world.wait_until(lambda: _is_only_finetunejob(world, "kept"))
    assert world.proxy.requests.count(("DELETE", world.path("finetunejobs", "bot"))) == 1


async def _is_only_finetunejob(world: NamespaceHarness, name: str) -> bool:
    return [job["metadata"]["name"] for job in await world.list_objects("finetunejobs")] == [name]


async def test_run_progress_stalled_sets_reason_until_it_moves(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch, trainer: FakeTrainer
) -> None:
    monkeypatch.setattr("finetune_operator.controller.finetunejob.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {"stage": "Training", "step": 4, "lastUpdateTime": seconds_ago(2)}
    async with world.run_operator():
        await world.create_finetunejob(spec={"training": {"stallSeconds": 10}})
        await world.create_pod()
        await world.report_container_state(_running_state(8))
        await world.wait_for_reason("ProgressStalled")
        trainer.answer = {"stage": "Training", "step": 5, "lastUpdateTime": seconds_ago(0)}
        await world.wait_for_reason("PodRunning")
