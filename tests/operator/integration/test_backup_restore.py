"""A FineTuneJob that is restored from a backup or another cluster runs again unless it had finished."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.run_phases import PHASES, build_outcome_state, delete_in_background, is_everything_deleted

if TYPE_CHECKING:
    from tests.support.operator.builders import Body
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def _restore_without_status(world: NamespaceHarness, body: Body) -> None:
    """Restore as `kubectl get -o yaml | kubectl apply -f -` in an empty namespace, without resourceVersion."""
    meta = {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
    await world.call("POST", world.path("finetunejobs"), {**body, "metadata": meta})


async def _restore_with_status(world: NamespaceHarness, body: Body) -> None:
    """Restore as backup tools that write the status through its subresource."""
    await _restore_without_status(world, body)
    await world.call("PATCH", world.path("finetunejobs", "bot", "status"), {"status": body["status"]})


async def _back_up_and_delete(world: NamespaceHarness, phase: str) -> Body:
    """Return the backup of a run in that phase, after deleting all its objects."""
    async with world.run_operator():
        await PHASES[phase](world)
    body = await world.get("finetunejobs")
    await delete_in_background(world, body)
    assert await is_everything_deleted(world)
    return body


@pytest.mark.parametrize("phase", ["running", "finished"])
async def test_restore_without_status_runs_trainer_again(world: NamespaceHarness, phase: str) -> None:
    """The trainer finds the published result, or resumes from the checkpoint."""
    body = await _back_up_and_delete(world, phase)
    async with world.run_operator():
        await _restore_without_status(world, body)
        status = await world.wait_for_reason("JobCreated")
        assert "result" not in status
        assert "attempts" not in status
        await world.create_pod()
        await world.report_container_state(build_outcome_state(0, "AlreadyComplete"), "Succeeded")
        await world.report_job_end("Complete")
        assert (await world.wait_for_reason("AlreadyComplete"))["phase"] == "Complete"


async def test_restore_with_status_finished_run_creates_no_job(world: NamespaceHarness) -> None:
    body = await _back_up_and_delete(world, "finished")
    await _restore_with_status(world, body)
    since = len(world.proxy.list_writes())
    async with world.run_operator() as operator:
        await operator.resync()
        await asyncio.sleep(0.5)
    assert {path.rpartition("/")[2] for _, path in world.proxy.list_writes()[since:]} <= {"status"}
    assert await world.list_objects("jobs") == []
    restored = (await world.get("finetunejobs"))["status"]
    assert [condition["reason"] for condition in restored["conditions"]] == ["Completed"] * len(restored["conditions"])


async def test_restore_while_operator_runs_finished_run_deletes_job(world: NamespaceHarness) -> None:
    """The operator creates a Job before the status is restored, and deletes it afterwards."""
    body = await _back_up_and_delete(world, "finished")
    async with world.run_operator():
        await _restore_without_status(world, body)
        await world.wait_for_reason("JobCreated")
        await world.call("PATCH", world.path("finetunejobs", "bot", "status"), {"status": body["status"]})
        await world.wait_until(lambda: _is_job_deleting(world))
        await world.finish_job_deletion()
        await asyncio.sleep(0.3)
        assert await world.list_objects("jobs") == []


async def _is_job_deleting(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def test_restore_with_status_unfinished_run_continues(world: NamespaceHarness) -> None:
    body = await _back_up_and_delete(world, "running")
    await _restore_with_status(world, body)
    async with world.run_operator():
        status = await world.wait_for_reason("JobCreated")
        assert status["attempts"] == 1
        await world.create_pod()
        await world.report_container_state({"running": {"startedAt": "2026-11-23T09:00:05Z"}})
        status = await world.wait_for_reason("PodRunning")
    assert status["attempts"] == 2
