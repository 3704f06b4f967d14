"""The real operator, kopf and all, against a real API server behind a proxy; tests play Job controller and kubelet."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.operator.proxies import Trainer
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = pytest.mark.cluster

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


def _ended(code: int, **outcome: Any) -> dict[str, Any]:
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {"terminated": {"exitCode": code, "message": json.dumps(outcome) if outcome else "", **times}}


RESULT = {
    "adapterURI": "s3://bucket/adapters/x",
    "digest": "sha256:ab",
    "modelRevision": "abc",
    "metrics": {"trainLoss": 1.5},
}


async def test_a_run_from_manifest_to_result(world: World) -> None:
    async with world.operator():
        created = await world.apply()
        await world.reason("JobCreated")
        job = await world.get("jobs")
        assert job["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
        await world.pod()
        await world.kubelet(RUNNING)
        status = await world.reason("PodRunning")
        assert status["phase"] == "Running"
        assert status["startTime"] == "2026-11-23T08:00:05Z"
        assert status["attempts"] == 1
        outcome = {"reason": "Completed", "message": "done", "backend": "transformers", "result": RESULT}
        await world.kubelet(_ended(0, **outcome), "Succeeded")
        await world.job_ends("Complete")
        status = await world.reason("Completed")
        assert status["phase"] == "Complete"
        assert status["result"] == RESULT
        assert status["progress"]["percentage"] == 100
        assert status["jobName"] == "bot"
        await world.until(lambda: _reported(world, "Completed"))
    assert {path.rpartition("/")[2] for method, path in world.proxy.writes()} == {"jobs", "status"}
    assert world.proxy.selectors["pods"] == world.proxy.selectors["jobs"] == {"finetune.dev/job"}


async def _reported(world: World, reason: str) -> bool:
    return reason in {event["reason"] for event in await world.all("events")}


async def test_a_permanent_failure_tells_the_trainers_reason(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(_ended(42, reason="DataInvalid", message="row 7 of s3://bucket/data.jsonl"), "Failed")
        await world.job_ends("Failed", "PodFailurePolicy")
        status = await world.reason("DataInvalid")
    assert status["phase"] == "Failed"
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Failed": "True", "Running": "False", "Stalled": "True",
    }  # fmt: skip


async def test_a_restart_changes_nothing(world: World) -> None:
    async with world.operator():
        await world.apply("ended")
        await world.apply("running")
        for name in ("ended", "running"):
            await world.pod(name)
        await world.kubelet(RUNNING, name="running-1")
        await world.kubelet(_ended(0, reason="Completed", message="done"), "Succeeded", "ended-1")
        await world.job_ends("Complete", name="ended")
        await world.reason("Completed", "ended")
        await world.reason("PodRunning", "running")
    world.proxy.seen.clear()
    async with world.operator() as operator:
        await operator.resync()
        await asyncio.sleep(1)
    assert world.proxy.writes() == []
    assert len(await world.all("jobs")) == 2


async def test_what_ended_while_the_operator_was_away_is_noticed(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
    await world.kubelet(_ended(0, reason="AlreadyComplete", message="was there"), "Succeeded")
    await world.job_ends("Complete")
    await world.apply("second")
    async with world.operator():
        await world.reason("AlreadyComplete")
        await world.reason("JobCreated", "second")


async def test_a_finished_run_gets_no_second_job(world: World) -> None:
    async with world.operator() as operator:
        await world.apply()
        await world.pod()
        await world.kubelet(_ended(0, reason="Completed", message="done"), "Succeeded")
        await world.job_ends("Complete")
        before = await world.reason("Completed")
        await world.delete("pods", "bot-1")
        await world.delete("jobs")
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await world.all("jobs") == []
        assert (await world.get("finetunejobs"))["status"] == before


async def test_a_job_deleted_by_hand_comes_back_after_its_pods(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(RUNNING)
        await world.reason("PodRunning")
        first = await world.get("jobs")
        await world.delete("jobs")
        await world.reason("JobPending")
        assert await world.all("jobs") == []
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.until(lambda: world.get("jobs"))
    assert (await world.get("jobs"))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_deleted_finetunejob_is_left_alone(world: World) -> None:
    async with world.operator() as operator:
        await world.apply()
        await world.reason("JobCreated")
        await world.delete("finetunejobs")
        await world.until(lambda: _is_forgotten(operator))
        world.proxy.seen.clear()
        await operator.resync()
        await asyncio.sleep(0.3)
    assert world.proxy.writes() == []


async def _is_forgotten(operator: Manager) -> bool:
    return not operator.cache.finetunejobs.list_keys()


async def test_a_foreign_job_is_never_touched(world: World) -> None:
    container = {"name": "c", "image": "x"}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    foreign = await world.call("POST", world.path("jobs"), {"metadata": {"name": "bot"}, "spec": spec})
    async with world.operator():
        await world.apply()
        status = await world.reason("NameConflict")
    assert status["phase"] == "Failed"
    assert (await world.get("jobs"))["metadata"]["resourceVersion"] == foreign["metadata"]["resourceVersion"]


async def test_the_job_of_a_predecessor_is_waited_for(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
        await world.delete("finetunejobs")
        await world.apply()
        await world.reason("JobPending")
        await world.delete("jobs")  # by the garbage collector
        await world.reason("JobCreated")


async def test_forged_annotations_and_labels_change_nothing(world: World) -> None:
    forged = {
        "kopf.zalando.org/last-handled-configuration": "not json {",
        "kopf.zalando.org/finetunejob": '{"success":true,"delayed":"2099-01-01T00:00:00"}',
        "kopf.zalando.org/touch": "not json {",
    }
    async with world.operator():
        finalizers = ["kopf.zalando.org/KopfFinalizerMarker"]
        await world.apply(annotations=forged, labels={"finetune.dev/job": "other"}, finalizers=finalizers)
        await world.reason("JobCreated")
        await world.pod()
        await world.kubelet(RUNNING)
        await world.reason("PodRunning")
    assert {path.rpartition("/")[2] for _, path in world.proxy.writes()} == {"jobs", "status"}
    assert (await world.get("finetunejobs"))["metadata"]["annotations"] == forged


async def test_a_job_that_is_seen_to_end_before_its_pod_still_tells_the_outcome(world: World) -> None:
    async with world.operator() as operator:
        await world.apply()
        await world.pod()
        await world.kubelet(RUNNING)
        await world.reason("PodRunning")
        operator.cache.pods.update = lambda *_: False  # type: ignore[method-assign]  # this watch is late
        await world.kubelet(_ended(0, reason="Completed", message="done"), "Succeeded")
        put = type(operator.cache.pods).update
        await asyncio.sleep(0.5)
        operator.cache.pods.update = lambda key, body: put(operator.cache.pods, key, body)  # type: ignore[method-assign]
        await world.job_ends("Complete")
        await world.reason("Completed")


async def test_the_pods_progress_is_shown(world: World, monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
    monkeypatch.setattr("finetune_operator.controller.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {
        "stage": "Training",
        "percentage": 40,
        "step": 4,
        "estimatedRemainingSeconds": 4321,
        "lastUpdateTime": "t",
    }
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(RUNNING)
        await world.until(lambda: _progress(world, 40))
        trainer.answer["percentage"] = 50
        progress = await world.until(lambda: _progress(world, 50))
    assert progress["estimatedRemaining"] == "1h12m"


async def _progress(world: World, percentage: int) -> dict[str, Any] | None:
    progress = (await world.get("finetunejobs")).get("status", {}).get("progress", {})
    return progress if progress.get("percentage") == percentage else None
