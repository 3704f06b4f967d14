"""Nodes disappear without warning. The API server is real, and the tests act as Kubernetes' controllers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster


async def _has_status_fields(world: NamespaceHarness, **fields: Any) -> bool:
    return bool((await world.get("finetunejobs")).get("status", {}).items() >= fields.items())


async def _is_job_deleting(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _kill_pod(world: NamespaceHarness, index: int, saves: bool) -> None:
    """Terminate a pod as on a reclaimed spot node: the kubelet reports what the trainer had written by then."""
    name, start = f"bot-{index}", seconds_ago(40 - 4 * index)
    await world.create_pod(index=index)
    await world.report_container_state({"running": {"startedAt": start}}, name=name)
    await world.wait_until(lambda: _has_status_fields(world, attempts=index))
    record = json.dumps({"checkpoint": {"step": index, "time": seconds_ago(38 - 4 * index)}})
    terminated = {
        "exitCode": 137,
        "startedAt": start,
        "finishedAt": seconds_ago(37 - 4 * index),
        "message": record * saves,
    }
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    await world.call("PATCH", world.path("pods", name, "status"), {"status": {"conditions": [disrupted]}})
    await world.report_container_state({"terminated": terminated}, "Failed", name)


async def test_reconciler_pods_killed_counts_checkpoint_records_not_progress(
    world: NamespaceHarness, trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.controller.finetunejob.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {}  # as unreachable as can be: no answer in form
    async with world.run_operator():
        await world.create_finetunejob()
        for index in range(1, 6):
            await _kill_pod(world, index, saves=True)
        status = await world.wait_until(lambda: _get_pending_status_with_step(world, 5))
        assert (status["phase"], status.get("interruptions")) == ("Pending", None)
        assert "A checkpoint of step 5 is stored." in status["conditions"][0]["message"]
        trainer.answer = {"stage": "Training", "lastCheckpointStep": 9, "lastCheckpointTime": seconds_ago(0)}
        trainer.answer |= {"lastUpdateTime": seconds_ago(0)}
        for index in range(6, 9):
            await _kill_pod(world, index, saves=False)
        status = await world.wait_for_reason("NoProgress")
        await world.wait_until(lambda: _is_job_deleting(world))
    assert (status["phase"], status["attempts"]) == ("Failed", 8)


async def _get_pending_status_with_step(world: NamespaceHarness, step: int) -> dict[str, Any] | None:
    status: dict[str, Any] = (await world.get("finetunejobs")).get("status", {})
    return status if (status.get("lastCheckpointStep"), status.get("phase")) == (step, "Pending") else None
