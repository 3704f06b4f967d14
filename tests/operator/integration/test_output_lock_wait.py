"""A run that waits for another to release its output reports this, also with a CRD that lacks the stage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.fault_proxy import build_error_response

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

WAITING = "WaitingForOutput"
MESSAGE = "Pod bot-1 is waiting for another run to release spec.output.uri (at most 120 s)."


@pytest.fixture
def start() -> str:
    """Return the start of a trainer that has waited for half of the watchdog's time.

    It is computed here, because the import of this module may be long before the test.
    """
    return (datetime.now(UTC) - timedelta(seconds=45)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.fixture
def waits(trainer: FakeTrainer, start: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the trainer's progress."""
    monkeypatch.setattr("finetune_operator.controller.finetunejob.progress_poller.PROGRESS_PORT", trainer.port)
    trainer.answer = {"stage": WAITING, "lastUpdateTime": start}
    return trainer.answer


async def _get_status_with_message(world: NamespaceHarness, message: str) -> dict[str, object] | None:
    status: dict[str, object] = (await world.get("finetunejobs")).get("status", {})
    return status if message in str(status.get("conditions")) else None


async def test_run_waiting_for_output_lock_shows_stage_and_message(
    world: NamespaceHarness, waits: dict[str, str], start: str
) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"training": {"stallSeconds": 60}})  # half of which is over
        await world.create_pod()
        await world.report_container_state({"running": {"startedAt": start}})
        status = await world.wait_until(lambda: _get_status_with_message(world, MESSAGE))
    assert status["progress"] == {**waits, "percentage": 0, "completed": "0%"}


async def test_crd_without_stage_rejects_progress_but_keeps_status(
    world: NamespaceHarness, trainer: FakeTrainer, waits: dict[str, str], start: str
) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        refused = request.method == "PATCH" and WAITING in await request.text()
        return build_error_response(422) if refused else None

    world.proxy.interceptor = refuse
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state({"running": {"startedAt": start}})
        status = await world.wait_until(lambda: _get_status_with_message(world, MESSAGE))
        assert ("progress" in status, status["attempts"]) == (False, 1)
        trainer.answer = {**waits, "stage": "Training"}
        status = await world.wait_until(lambda: _get_status_with_message(world, "Pod bot-1 is training."))
    assert status["progress"] == {**waits, "stage": "Training", "percentage": 0, "completed": "0%"}
