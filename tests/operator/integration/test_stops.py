"""Cancelling a run, points to stop at and budgets on a real API server. The tests act as Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago
from tests.support.operator.namespace_harness import RequestRejected

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster


def _running_state(seconds: float = 5) -> dict[str, Any]:
    return {"running": {"startedAt": seconds_ago(seconds)}}


def _terminated_state(code: int, **outcome: Any) -> dict[str, Any]:
    times = {"startedAt": seconds_ago(5), "finishedAt": seconds_ago(0)}
    return {"terminated": {"exitCode": code, "message": json.dumps({"message": "words", **outcome}), **times}}


def _step_reached_state(step: int) -> dict[str, Any]:
    result = {"step": step, "evalLoss": 1.25, "evalLossLow": 1.2, "evalLossHigh": 1.3}
    return _terminated_state(0, reason="StepReached", stepResult=result)


async def _start_trainer(world: NamespaceHarness, seconds: float = 5, **spec: Any) -> None:
    """Create a FineTuneJob whose trainer has been running for some seconds."""
    await world.create_finetunejob(spec=spec)
    await world.create_pod()
    await world.report_container_state(_running_state(seconds))
    await world.wait_for_reason("PodRunning")


async def _is_job_deleting(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _has_no_job(world: NamespaceHarness) -> bool:
    return not await world.list_objects("jobs")


async def _get_step_variable(world: NamespaceHarness) -> str | None:
    """Return the step that the trainers of the Job are told to stop at."""
    (container,) = (await world.get("jobs"))["spec"]["template"]["spec"]["containers"]
    return next((each["value"] for each in container["env"] if each["name"] == "FINETUNE_SUSPEND_AT_STEP"), None)


async def test_run_cancelled_ends_for_good(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await _start_trainer(world)
        await world.patch_spec({"cancel": True})
        status = await world.wait_for_reason("Cancelling")
        assert (status["phase"], await _is_job_deleting(world)) == ("Running", True)
        await world.wait_until(lambda: _has_grace_period(world, 1))
        await world.report_container_state(_terminated_state(143, reason="Preempted"), "Failed")
        await world.finish_job_deletion()
        status = await world.wait_for_reason("Cancelled")
        conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
        assert (status["phase"], conditions) == ("Cancelled", {"Cancelled": "True", "Running": "False"})
        assert status["completionTime"]
        with pytest.raises(RequestRejected, match="cancel cannot be undone"):
            await world.patch_spec({"cancel": False})
        await world.patch_spec({"suspend": True})
        await world.patch_spec({"suspend": False})
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await _has_no_job(world)
        await world.patch_spec({"ttlSecondsAfterFinished": 1})
        await world.wait_until(lambda: _is_finetunejob_gone(world))


async def _has_grace_period(world: NamespaceHarness, seconds: int) -> bool:
    return bool((await world.get("pods", "bot-1"))["metadata"].get("deletionGracePeriodSeconds") == seconds)


async def _is_finetunejob_gone(world: NamespaceHarness) -> bool:
    return not await world.list_objects("finetunejobs")


async def test_run_cancelled_after_completion_stays_complete(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_terminated_state(0, reason="Completed"), "Succeeded")
        await world.report_job_end("Complete")
        await world.patch_spec({"cancel": True})
        status = await world.wait_for_reason("Completed")
        await asyncio.sleep(0.5)
        assert (await world.get("finetunejobs"))["status"]["phase"] == status["phase"] == "Complete"


async def test_run_stops_at_step_and_continues_to_the_next(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await _start_trainer(world, suspendAtStep=100)
        assert await _get_step_variable(world) == "100"
        await world.report_container_state(_step_reached_state(100), "Succeeded")
        await world.report_job_end("Complete")
        status = await world.wait_for_reason("StepReached")
        assert (status["phase"], status["stepResult"]["evalLoss"]) == ("Suspended", 1.25)
        assert "step 100: the validation loss is 1.25" in status["conditions"][0]["message"]
        await world.wait_until(lambda: _is_job_deleting(world))
        await world.finish_job_deletion()
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await _has_no_job(world)
        assert (await world.get("finetunejobs"))["status"]["reason"] == "StepReached"
        await world.patch_spec({"suspendAtStep": 200})
        await world.wait_for_reason("JobCreated")
        assert await _get_step_variable(world) == "200"
    assert (await world.get("finetunejobs"))["status"]["stepResult"]["step"] == 100


async def test_run_step_changed_restarts_trainer_from_checkpoint(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await _start_trainer(world)
        first = await world.get("jobs")
        await world.patch_spec({"suspendAtStep": 50})
        await world.wait_until(lambda: _is_job_deleting(world))
        await world.finish_job_deletion()
        await world.wait_for_reason("JobCreated")
        assert await _get_step_variable(world) == "50"
    assert (await world.get("jobs"))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_run_budget_used_up_suspends_without_an_event_and_resumes_when_raised(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await _start_trainer(world, 1, budget={"activeSeconds": 4})
        assert not await _is_job_deleting(world)
        await world.wait_for_reason("Suspending")
        assert await _is_job_deleting(world)
        await world.finish_job_deletion()
        status = await world.wait_for_reason("BudgetExhausted")
        assert status["phase"] == "Suspended"
        assert status["activeSeconds"] >= 4
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await _has_no_job(world)
        await world.patch_spec({"budget": {"activeSeconds": 1000}})
        await world.wait_for_reason("JobCreated")


async def test_compute_changes_only_while_suspended_or_with_the_resumption(world: NamespaceHarness) -> None:
    message = "compute can change only while suspended"
    changes = [{"compute": {"image": f"image:{number}"}} for number in range(4)]
    async with world.run_operator():
        await _start_trainer(world)
        with pytest.raises(RequestRejected, match=message):
            await world.patch_spec({"suspend": True, **changes[0]})
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
        with pytest.raises(RequestRejected, match=message):
            await world.patch_spec(changes[0])
        with pytest.raises(RequestRejected, match=message):
            await world.patch_spec({"suspend": False, **changes[0]})
        await world.finish_job_deletion()
        await world.wait_for_reason("Suspended")
        await world.patch_spec(changes[1])
        await world.patch_spec({"suspend": False, **changes[2]})
        await world.wait_for_reason("JobCreated")
        with pytest.raises(RequestRejected, match=message):
            await world.patch_spec(changes[3])
    job = await world.get("jobs")
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "image:2"


async def test_field_selectors_select_by_phase_and_reason(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob("runs")
        await world.create_finetunejob("waits", spec={"suspend": True})
        await world.wait_for_reason("Suspended", "waits")
        await world.wait_for_reason("JobCreated", "runs")
    path = f"{world.path('finetunejobs')}?fieldSelector="
    for selector, names in {
        "status.phase=Suspended": ["waits"],
        "status.reason=JobCreated": ["runs"],
        "status.phase=Failed": [],
        "status.phase!=Suspended,status.reason!=JobPending": ["runs"],
    }.items():
        items = (await world.call("GET", path + selector))["items"]
        assert [item["metadata"]["name"] for item in items] == names, selector


async def test_job_suspended_by_a_person_is_not_queued(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"suspend": True}})
        status = await world.wait_for_reason("JobSuspended")
        assert f"kubectl patch job -n {world.namespace} bot" in status["conditions"][0]["message"]


async def test_columns_show_reason_and_duration_in_every_state(world: NamespaceHarness) -> None:
    async with world.run_operator():
        for name in ("ends", "runs", "stops"):
            await world.create_finetunejob(name, spec={"suspend": name == "stops"})
        await world.create_pod("runs")
        await world.report_container_state(_running_state(65), name="runs-1")
        await world.create_pod("ends")
        await world.report_container_state(_terminated_state(42, reason="DataInvalid"), "Failed", "ends-1")
        await world.report_job_end("Failed", "PodFailurePolicy", "ends")
        for name, reason in (("runs", "PodRunning"), ("ends", "DataInvalid"), ("stops", "Suspended")):
            await world.wait_for_reason(reason, name)
    table = await world.read_table("finetunejobs")
    columns = [column["name"] for column in table["columnDefinitions"] if not column["priority"]]
    assert columns == ["Name", "Phase", "Reason", "Progress", "ETA", "Loss", "Duration", "Age"]
    rows = {row["cells"][0]: row["cells"][1:7] for row in table["rows"]}
    assert rows["runs"][:2] == ["Running", "PodRunning"]
    assert rows["runs"][5] == "1m"
    assert rows["ends"][:2] == ["Failed", "DataInvalid"]
    assert rows["stops"] == ["Suspended", "Suspended", None, None, None, None]
