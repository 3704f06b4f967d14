"""The operator with kopf and a real API server behind a proxy. The tests act as Job controller and kubelet."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import get_cache

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

pytestmark = pytest.mark.cluster

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


def _terminated_state(code: int, **outcome: Any) -> dict[str, Any]:
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {"terminated": {"exitCode": code, "message": json.dumps(outcome) if outcome else "", **times}}


RESULT = {
    "adapterURI": "s3://bucket/adapters/x",
    "digest": "sha256:ab",
    "modelRevision": "abc",
    "metrics": {"trainLoss": 1.5},
}


async def test_reconciler_run_completes_with_result_in_status(world: NamespaceHarness) -> None:
    async with world.run_operator():
        created = await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        job = await world.get("jobs")
        assert job["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
        await world.create_pod()
        await world.report_container_state(RUNNING)
        status = await world.wait_for_reason("PodRunning")
        assert status["phase"] == "Running"
        assert status["startTime"] == "2026-11-23T08:00:05Z"
        assert status["attempts"] == 1
        outcome = {"reason": "Completed", "message": "done", "backend": "transformers", "result": RESULT}
        await world.report_container_state(_terminated_state(0, **outcome), "Succeeded")
        await world.report_job_end("Complete")
        status = await world.wait_for_reason("Completed")
        assert status["phase"] == "Complete"
        assert status["result"] == RESULT
        assert status["progress"]["percentage"] == 100
        assert status["jobName"] == "bot"
        await world.wait_until(lambda: _has_event(world, "Completed"))
    assert {path.rpartition("/")[2] for method, path in world.proxy.list_writes()} == {"jobs", "status"}
    assert world.proxy.selectors["pods"] == world.proxy.selectors["jobs"] == {"finetune.dev/job"}


async def _has_event(world: NamespaceHarness, reason: str) -> bool:
    return reason in {event["reason"] for event in await world.list_objects("events")}


async def test_reconciler_permanent_failure_sets_trainer_reason(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(
            _terminated_state(42, reason="DataInvalid", message="row 7 of s3://bucket/data.jsonl"), "Failed"
        )
        await world.report_job_end("Failed", "PodFailurePolicy")
        status = await world.wait_for_reason("DataInvalid")
    assert status["phase"] == "Failed"
    assert {condition["type"]: condition["status"] for condition in status["conditions"]} == {
        "Failed": "True", "Running": "False", "Stalled": "True",
    }  # fmt: skip


async def test_operator_restarted_writes_nothing(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob("ended")
        await world.create_finetunejob("running")
        for name in ("ended", "running"):
            await world.create_pod(name)
        await world.report_container_state(RUNNING, name="running-1")
        await world.report_container_state(
            _terminated_state(0, reason="Completed", message="done"), "Succeeded", "ended-1"
        )
        await world.report_job_end("Complete", name="ended")
        await world.wait_for_reason("Completed", "ended")
        await world.wait_for_reason("PodRunning", "running")
    world.proxy.requests.clear()
    async with world.run_operator() as operator:
        await operator.resync()
        await asyncio.sleep(1)
    assert world.proxy.list_writes() == []
    assert len(await world.list_objects("jobs")) == 2


async def test_operator_run_ended_while_down_is_observed(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
    await world.report_container_state(_terminated_state(0, reason="AlreadyComplete", message="was there"), "Succeeded")
    await world.report_job_end("Complete")
    await world.create_finetunejob("second")
    async with world.run_operator():
        await world.wait_for_reason("AlreadyComplete")
        await world.wait_for_reason("JobCreated", "second")


async def test_reconciler_finished_run_creates_no_second_job(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_terminated_state(0, reason="Completed", message="done"), "Succeeded")
        await world.report_job_end("Complete")
        before = await world.wait_for_reason("Completed")
        await world.delete("pods", "bot-1")
        await world.delete("jobs")
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await world.list_objects("jobs") == []
        assert (await world.get("finetunejobs"))["status"] == before


async def test_reconciler_job_deleted_recreates_job_after_pods(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(RUNNING)
        await world.wait_for_reason("PodRunning")
        first = await world.get("jobs")
        await world.delete("jobs")
        await world.wait_for_reason("JobPending")
        assert await world.list_objects("jobs") == []
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.wait_until(lambda: world.get("jobs"))
    assert (await world.get("jobs"))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_reconciler_finetunejob_deleted_writes_nothing(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        await world.delete("finetunejobs")
        await world.wait_until(lambda: _is_forgotten(operator))
        world.proxy.requests.clear()
        await operator.resync()
        await asyncio.sleep(0.3)
    assert world.proxy.list_writes() == []


async def _is_forgotten(operator: Manager) -> bool:
    return not get_cache(operator).finetunejobs.list_keys()


async def test_reconciler_foreign_job_is_name_conflict(world: NamespaceHarness) -> None:
    container = {"name": "c", "image": "x"}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    foreign = await world.call("POST", world.path("jobs"), {"metadata": {"name": "bot"}, "spec": spec})
    async with world.run_operator():
        await world.create_finetunejob()
        status = await world.wait_for_reason("NameConflict")
    assert status["phase"] == "Failed"
    assert (await world.get("jobs"))["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]


async def test_reconciler_job_of_earlier_finetunejob_is_waited_for(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
        await world.delete("finetunejobs")
        await world.create_finetunejob()
        await world.wait_for_reason("JobPending")
        await world.delete("jobs")  # by the garbage collector
        await world.wait_for_reason("JobCreated")


async def test_reconciler_forged_annotations_and_labels_are_ignored(world: NamespaceHarness) -> None:
    forged = {
        "kopf.zalando.org/last-handled-configuration": "not json {",
        "kopf.zalando.org/finetunejob": '{"success":true,"delayed":"2099-01-01T00:00:00"}',
        "kopf.zalando.org/touch": "not json {",
    }
    async with world.run_operator():
        finalizers = ["kopf.zalando.org/KopfFinalizerMarker"]
        await world.create_finetunejob(annotations=forged, labels={"finetune.dev/job": "other"}, finalizers=finalizers)
        await world.wait_for_reason("JobCreated")
        await world.create_pod()
        await world.report_container_state(RUNNING)
        await world.wait_for_reason("PodRunning")
    assert {path.rpartition("/")[2] for _, path in world.proxy.list_writes()} == {"jobs", "status"}
    assert (await world.get("finetunejobs"))["metadata"]["annotations"] == forged


async def test_reconciler_job_end_before_pod_end_reads_outcome(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(RUNNING)
        await world.wait_for_reason("PodRunning")
        get_cache(operator).pods.update = lambda *_: False  # type: ignore[method-assign]  # this watch is late
        await world.report_container_state(_terminated_state(0, reason="Completed", message="done"), "Succeeded")
        put = type(get_cache(operator).pods).update
        await asyncio.sleep(0.5)
        get_cache(operator).pods.update = lambda key, body: put(get_cache(operator).pods, key, body)  # type: ignore[method-assign]
        await world.report_job_end("Complete")
        await world.wait_for_reason("Completed")


async def test_reconciler_polled_progress_appears_in_status(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch, trainer: FakeTrainer
) -> None:
    monkeypatch.setattr("finetune_operator.controller.finetunejob.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {
        "stage": "Training",
        "percentage": 40,
        "step": 4,
        "estimatedRemainingSeconds": 4321,
        "lastUpdateTime": "t",
    }
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(RUNNING)
        await world.wait_until(lambda: _get_progress_at(world, 40))
        trainer.answer["percentage"] = 50
        progress = await world.wait_until(lambda: _get_progress_at(world, 50))
    assert progress["estimatedRemaining"] == "1h12m"


async def _get_progress_at(world: NamespaceHarness, percentage: int) -> dict[str, Any] | None:
    progress = (await world.get("finetunejobs")).get("status", {}).get("progress", {})
    return progress if progress.get("percentage") == percentage else None
