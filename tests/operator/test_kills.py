"""Nodes that are taken away without warning, on a real API server; tests play Kubernetes' controllers."""

from __future__ import annotations

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


async def _has(world: World, **wanted: Any) -> bool:
    return bool((await world.get("finetunejobs")).get("status", {}).items() >= wanted.items())


async def _is_deleted(world: World) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _is_killed(world: World, index: int, saves: bool) -> None:
    """A spot node is taken away: the kubelet reports the end, with whatever the trainer had written by then."""
    name, start = f"bot-{index}", _ago(40 - 4 * index)
    await world.pod(index=index)
    await world.kubelet({"running": {"startedAt": start}}, name=name)
    await world.until(lambda: _has(world, attempts=index))
    record = json.dumps({"checkpoint": {"step": index, "time": _ago(38 - 4 * index)}})
    ended = {"exitCode": 137, "startedAt": start, "finishedAt": _ago(37 - 4 * index), "message": record * saves}
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}
    await world.call("PATCH", world.path("pods", name, "status"), {"status": {"conditions": [disrupted]}})
    await world.kubelet({"terminated": ended}, "Failed", name)


async def test_kills_of_a_run_that_saves_never_end_it_and_its_progress_has_no_part_in_it(
    world: World, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_operator.controller.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {}  # as unreachable as can be: no answer in form
    async with world.operator():
        await world.apply()
        for index in range(1, 6):
            await _is_killed(world, index, saves=True)
        status = await world.until(lambda: _saved_step(world, 5))
        assert (status["phase"], status.get("interruptions")) == ("Pending", None)
        assert "A checkpoint of step 5 is stored." in status["conditions"][0]["message"]
        trainer.answer = {"stage": "Training", "lastCheckpointStep": 9, "lastCheckpointTime": _ago(0)}
        trainer.answer |= {"lastUpdateTime": _ago(0)}
        for index in range(6, 9):
            await _is_killed(world, index, saves=False)
        status = await world.reason("NoProgress")
        await world.until(lambda: _is_deleted(world))
    assert (status["phase"], status["attempts"]) == ("Failed", 8)


async def _saved_step(world: World, step: int) -> dict[str, Any] | None:
    status: dict[str, Any] = (await world.get("finetunejobs")).get("status", {})
    return status if (status.get("lastCheckpointStep"), status.get("phase")) == (step, "Pending") else None
