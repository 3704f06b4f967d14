"""The checkpoints of failed and deleted runs are cleaned by Jobs, which the operator creates, resumes and records."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago

from finetune_operator.api.labels import TASK_LABEL
from finetune_operator.policy.limits import Bounds
from finetune_operator.resources.task_job import read_task_config

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness
    from tests.support.operator.watch_interceptors import WatchGate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]
RETENTION = {"checkpoint_retention_seconds": 1, "resync_interval": 0.3}
LONG_RETENTION = {"checkpoint_retention_seconds": 3600, "resync_interval": 0.5}


async def _start_run(world: NamespaceHarness, name: str = "bot", spec: Body | None = None) -> None:
    await world.create_finetunejob(name, spec)
    await world.create_pod(name)
    await world.report_container_state({"running": {"startedAt": seconds_ago(0)}}, name=f"{name}-1")
    await world.wait_for_reason("PodRunning", name)


async def _fail_run(world: NamespaceHarness, name: str = "bot") -> None:
    await _start_run(world, name)
    message = json.dumps({"reason": "DataInvalid", "message": "row 1"})
    times = {"startedAt": seconds_ago(0), "finishedAt": seconds_ago(0)}
    await world.report_container_state(
        {"terminated": {"exitCode": 42, "message": message, **times}}, "Failed", f"{name}-1"
    )
    await world.report_job_end("Failed", name=name, end_time=seconds_ago(0))
    await world.wait_for_reason("DataInvalid", name)


async def _list_task_jobs(world: NamespaceHarness) -> list[Body]:
    jobs = await world.list_objects("jobs")
    return [job for job in jobs if TASK_LABEL in job["metadata"].get("labels", {})]


async def _wait_for_task_job(world: NamespaceHarness, suspended: bool) -> Body:
    async def probe() -> Body | None:
        jobs = await _list_task_jobs(world)
        return next((job for job in jobs if job["spec"]["suspend"] is suspended), None)

    return await world.wait_until(probe)


async def _end_task(world: NamespaceHarness, job: Body, final_type: str, outcome: Body) -> None:
    """Act as the Job controller and the kubelet for the Job of a task."""
    name = job["metadata"]["name"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
    template = job["spec"]["template"]
    meta = {**template["metadata"], "name": f"{name}-x", "ownerReferences": [owner]}
    await world.call("POST", world.path("pods"), {"metadata": meta, "spec": {**template["spec"], "nodeName": "node-1"}})
    code = 0 if final_type == "Complete" else 42
    state = {"terminated": {"exitCode": code, "message": json.dumps(outcome)}}
    entry = {"name": "task", "state": state, "ready": False, "restartCount": 0, "image": "x", "imageID": "x"}
    status = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [entry]}
    await world.call("PATCH", world.path("pods", f"{name}-x", "status"), {"status": status})
    await world.report_job_end(final_type, name=name, end_time=seconds_ago(0))


async def _wait_for_event(world: NamespaceHarness, reason: str) -> Body:
    async def probe() -> Body | None:
        return next((event for event in await world.list_objects("events") if event["reason"] == reason), None)

    return await world.wait_until(probe)


async def test_failed_run_is_cleaned_once_after_retention(world: NamespaceHarness) -> None:
    async with world.run_operator(**RETENTION) as operator:
        await _fail_run(world)
        job = await _wait_for_task_job(world, suspended=False)
        finetunejob = await world.get("finetunejobs")
        assert job["metadata"]["ownerReferences"][0]["uid"] == finetunejob["metadata"]["uid"]
        config = read_task_config(job)
        assert config
        assert config.clean.output_uri == f"s3://bucket/adapters/{world.namespace}/bot"
        message = "deleted 5 objects"
        await _end_task(world, job, "Complete", {"reason": "Completed", "message": message, "clean": {"objects": 5}})
        await operator.workers.poll()
        event = await _wait_for_event(world, "CheckpointsCleaned")
        assert (event["message"], event["type"]) == (message, "Normal")
        await world.wait_until(lambda: _get_cleaned_time(world))
        await world.call("DELETE", world.path("jobs", job["metadata"]["name"]), {"propagationPolicy": "Background"})
        await operator.workers.poll()
        await asyncio.sleep(0.8)
        assert await _list_task_jobs(world) == []
        assert (await world.get("finetunejobs"))["status"]["phase"] == "Failed"
        await world.delete("finetunejobs")
        await asyncio.sleep(0.5)
        assert await _list_task_jobs(world) == []  # there is nothing left to clean


async def test_complete_run_seen_after_retention_is_not_cleaned(world: NamespaceHarness) -> None:
    """The operator may have been down for that long. The trainer has deleted the checkpoints."""
    async with world.run_operator(**RETENTION):
        await _start_run(world)
        message = json.dumps({"reason": "Completed", "message": "published"})
        times = {"startedAt": seconds_ago(3600), "finishedAt": seconds_ago(3600)}
        await world.report_container_state({"terminated": {"exitCode": 0, "message": message, **times}}, "Succeeded")
        await world.report_job_end("Complete", end_time=seconds_ago(3600))
        await world.wait_for_reason("Completed")
        await asyncio.sleep(0.8)
    assert await _list_task_jobs(world) == []


async def _get_cleaned_time(world: NamespaceHarness) -> str | None:
    time: str | None = (await world.get("finetunejobs"))["status"].get("checkpointsCleanedTime")
    return time


async def test_failed_cleaning_is_reported(world: NamespaceHarness) -> None:
    async with world.run_operator(**RETENTION):
        await _fail_run(world)
        job = await _wait_for_task_job(world, suspended=False)
        await _end_task(world, job, "Failed", {"reason": "AccessDenied", "message": "no permission"})
        event = await _wait_for_event(world, "CleaningFailed")
    assert (event["message"], event["type"]) == ("AccessDenied: no permission", "Warning")
    assert await _get_cleaned_time(world) is None


async def test_failed_run_with_live_run_at_its_output_is_not_cleaned(world: NamespaceHarness) -> None:
    async with world.run_operator(**RETENTION):
        uri = f"s3://bucket/adapters/{world.namespace}/bot/"
        await world.create_finetunejob("next", {"output": {"uri": uri}, "suspend": True})
        await world.wait_for_reason("Suspended", "next")
        await _fail_run(world)
        await asyncio.sleep(2.5)
        assert await _list_task_jobs(world) == []
        await world.delete("finetunejobs", "next")  # its trainer never started
        await _wait_for_task_job(world, suspended=False)


async def test_deleted_run_created_again_keeps_its_checkpoints_until_it_ends(
    world: NamespaceHarness, watches: WatchGate
) -> None:
    async with world.run_operator(**RETENTION) as operator:
        await _start_run(world)
        watches.held_plural, watches.mode = "finetunejobs", "held"
        await world.delete("finetunejobs")
        await world.create_finetunejob()  # at once, as `kubectl replace` and GitOps tools do
        await operator.resync()  # notices both
        watches.mode = "open"
        job = await _wait_for_task_job(world, suspended=True)
        assert "ownerReferences" not in job["metadata"]
        config = read_task_config(job)
        assert config
        assert config.clean.not_before
        await asyncio.sleep(2.5)
        assert [job["spec"]["suspend"] for job in await _list_task_jobs(world)] == [True]
        await world.delete("finetunejobs")
        resumed = await _wait_for_task_job(world, suspended=False)
    assert resumed["metadata"]["uid"] == job["metadata"]["uid"]


async def test_run_deleted_twice_leaves_one_job(world: NamespaceHarness) -> None:
    async with world.run_operator(**LONG_RETENTION):
        for name in ("first", "second"):
            await _start_run(world, name, {"output": {"uri": "s3://bucket/shared"}})
            await world.delete("finetunejobs", name)
            await _wait_for_task_job(world, suspended=True)
            if name == "first":
                await asyncio.sleep(1.1)  # times have whole seconds

        async def is_replaced() -> bool:
            remaining = [job for job in await _list_task_jobs(world) if "deletionTimestamp" not in job["metadata"]]
            return len(remaining) == 1 and remaining[0]["metadata"]["name"].startswith("second-")

        await world.wait_until(is_replaced)


async def test_deleted_failed_run_after_its_ttl_is_recorded(world: NamespaceHarness) -> None:
    async with world.run_operator(**LONG_RETENTION):
        await _fail_run(world)
        await world.patch_spec({"ttlSecondsAfterFinished": 0})
        job = await _wait_for_task_job(world, suspended=True)
    config = read_task_config(job)
    assert config
    due_in = datetime.fromisoformat(config.clean.not_before or "") - datetime.now(UTC)
    assert timedelta(seconds=3500) < due_in <= timedelta(seconds=3601)


async def test_deleted_run_refused_by_a_policy_is_logged_once(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.run_operator(**LONG_RETENTION) as operator:
        await _start_run(world)
        world.proxy.fail_next("POST", "/jobs", 403)
        await world.delete("finetunejobs")

        async def is_logged() -> bool:
            return "are not cleaned" in caplog.text

        await world.wait_until(is_logged)
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await _list_task_jobs(world) == []


async def test_deleted_run_is_recorded_after_a_failed_request(world: NamespaceHarness) -> None:
    async with world.run_operator(**LONG_RETENTION):
        await _start_run(world)
        world.proxy.fail_next("POST", "/jobs", 503)
        await world.delete("finetunejobs")
        await _wait_for_task_job(world, suspended=True)


async def test_retention_of_zero_keeps_all_checkpoints(world: NamespaceHarness) -> None:
    async with world.run_operator(resync_interval=0.5):
        await _fail_run(world)
        await _start_run(world, "other")
        await world.delete("finetunejobs", "other")
        await asyncio.sleep(1)
        assert await _list_task_jobs(world) == []


async def test_failed_run_beyond_the_bounds_of_today_is_reported(world: NamespaceHarness) -> None:
    async with world.run_operator(**LONG_RETENTION):
        await _fail_run(world)
    async with world.run_operator(**RETENTION, bounds=Bounds(allowed_service_accounts=["finetune"])):
        event = await _wait_for_event(world, "CleaningFailed")
        assert "spec.compute.serviceAccountName" in event["message"]
        assert await _list_task_jobs(world) == []
