"""Why nothing starts is told in the words of whoever knows: by Events, which nobody watches."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = pytest.mark.cluster


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _warn(world: World, about: dict[str, Any], reason: str, message: str, seconds: float = 0) -> None:
    """What the kubelet or the Job controller reports."""
    meta = about["metadata"]
    reference = {key: meta[key] for key in ("name", "namespace", "uid")}
    event = {"metadata": {"generateName": "e"}, "involvedObject": reference, "type": "Warning"}
    said = {"reason": reason, "message": message, "lastTimestamp": _ago(seconds)}
    await world.call("POST", world.path("events"), event | said)


async def test_why_a_pod_does_not_start_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.status.deadlines.STARTUP_GRACE_SECONDS", 1.0)
    async with world.operator():
        await world.apply()
        await _warn(world, await world.pod(), "FailedMount", 'secret "keys" not found')
        await world.kubelet({"waiting": {"reason": "ContainerCreating"}}, "Pending")
        status = await world.reason("ContainerConfigError")
    assert 'secret "keys" not found' in status["conditions"][0]["message"]


@pytest.mark.parametrize("is_left", [True, False], ids=["the pod before is left", "the pod before is gone"])
async def test_why_the_next_pod_is_not_created_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch, is_left: bool
) -> None:
    """Not what kept an earlier one, which has started since."""
    monkeypatch.setattr("finetune_operator.status.deadlines.BACKOFF_GRACE_SECONDS", 2.0)
    async with world.operator():
        await world.apply()
        await world.pod()
        job = await world.get("jobs")
        await _warn(world, job, "FailedCreate", "of before", 30)
        end = {"exitCode": 143, "startedAt": _ago(20), "finishedAt": _ago(0)}
        word = json.dumps({"reason": "Preempted", "message": "told to stop"})
        await world.kubelet({"terminated": end | {"message": word}}, "Failed")
        await world.reason("Retrying")
        if not is_left:
            await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await _warn(world, job, "FailedCreate", "exceeded quota: memory")
        status = await world.reason("JobRefused")
        message = status["conditions"][0]["message"]
        await world.pod(index=2)
        await world.reason("Retrying")
    assert "FailedCreate: exceeded quota: memory" in message
    assert "told to stop" in message
