"""A run that waits until another has released its output says so, also where the CRD does not know the stage yet."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.operator.proxies import failure

if TYPE_CHECKING:
    from tests.operator.proxies import Trainer
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

WAITING = "WaitingForOutput"
MESSAGE = "Pod bot-1 waits until another run has released spec.output.uri (at most 120 s)."


@pytest.fixture
def start() -> str:
    """Not at import, which may be long before: half of the stall watchdog's time is over."""
    return (datetime.now(UTC) - timedelta(seconds=45)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def waits(trainer: Trainer, start: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the trainer answers."""
    monkeypatch.setattr("finetune_operator.controller.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {"stage": WAITING, "lastUpdateTime": start}
    return trainer.answer


async def _says(world: World, message: str) -> dict[str, object] | None:
    status: dict[str, object] = (await world.get("finetunejobs")).get("status", {})
    return status if message in str(status.get("conditions")) else None


async def test_message_and_stage_say_that_the_run_waits_for_its_output(
    world: World, waits: dict[str, str], start: str
) -> None:
    async with world.operator():
        await world.apply(spec={"training": {"stallSeconds": 60}})  # half of which is over
        await world.pod()
        await world.kubelet({"running": {"startedAt": start}})
        status = await world.until(lambda: _says(world, MESSAGE))
    assert status["progress"] == {**waits, "percentage": 0}


async def test_crd_that_does_not_know_the_stage_costs_only_the_progress(
    world: World, trainer: Trainer, waits: dict[str, str], start: str
) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        refused = request.method == "PATCH" and WAITING in await request.text()
        return failure(422) if refused else None

    world.proxy.trouble = refuse
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet({"running": {"startedAt": start}})
        status = await world.until(lambda: _says(world, MESSAGE))
        assert ("progress" in status, status["attempts"]) == (False, 1)
        trainer.answer = {**waits, "stage": "Training"}
        status = await world.until(lambda: _says(world, "Pod bot-1 trains."))
    assert status["progress"] == {**waits, "stage": "Training", "percentage": 0}
