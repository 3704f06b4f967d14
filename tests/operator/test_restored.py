"""A FineTuneJob from a backup or another cluster: what has ended does not run again, the rest does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.operator.phases import PHASES, delete, ended, nothing_is_left

if TYPE_CHECKING:
    from tests.operator.bodies import Body
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def _apply_anew(world: World, body: Body) -> None:
    """As `kubectl get -o yaml | kubectl apply -f -` into an empty namespace: kubectl leaves out the version only."""
    meta = {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
    await world.call("POST", world.path("finetunejobs"), {**body, "metadata": meta})


async def _and_its_status(world: World, body: Body) -> None:
    """As backup tools do that restore a status, by the subresource."""
    await _apply_anew(world, body)
    await world.call("PATCH", world.path("finetunejobs", "bot", "status"), {"status": body["status"]})


async def _vanish(world: World, phase: str) -> Body:
    """A backup of a run in that phase, of which nothing else is left."""
    async with world.operator():
        await PHASES[phase](world)
    body = await world.get("finetunejobs")
    await delete(world, body)
    assert await nothing_is_left(world)
    return body


@pytest.mark.parametrize("phase", ["running", "finished"])
async def test_restored_without_its_status_it_is_asked_of_the_trainer(world: World, phase: str) -> None:
    """Which finds what is published, or goes on from the checkpoint."""
    body = await _vanish(world, phase)
    async with world.operator():
        await _apply_anew(world, body)
        status = await world.reason("JobCreated")
        assert "result" not in status
        assert "attempts" not in status
        await world.pod()
        await world.kubelet(ended(0, "AlreadyComplete"), "Succeeded")
        await world.job_ends("Complete")
        assert (await world.reason("AlreadyComplete"))["phase"] == "Complete"


async def test_restored_with_its_status_what_has_ended_does_not_run_again(world: World) -> None:
    body = await _vanish(world, "finished")
    await _and_its_status(world, body)
    since = len(world.proxy.writes())
    async with world.operator() as operator:
        await operator.resync()
        await asyncio.sleep(0.5)
    assert {path.rpartition("/")[2] for _, path in world.proxy.writes()[since:]} <= {"status"}
    assert await world.all("jobs") == []
    restored = (await world.get("finetunejobs"))["status"]
    assert [each["reason"] for each in restored["conditions"]] == ["Completed"] * len(restored["conditions"])


async def test_restored_under_the_operators_eyes_what_has_ended_leaves_no_job(world: World) -> None:
    """The operator makes a Job before the status is there, and takes it back."""
    body = await _vanish(world, "finished")
    async with world.operator():
        await _apply_anew(world, body)
        await world.reason("JobCreated")
        await world.call("PATCH", world.path("finetunejobs", "bot", "status"), {"status": body["status"]})
        await world.until(lambda: _is_leaving(world))
        await world.collect()
        await asyncio.sleep(0.3)
        assert await world.all("jobs") == []


async def _is_leaving(world: World) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def test_restored_with_its_status_what_has_not_ended_goes_on(world: World) -> None:
    body = await _vanish(world, "running")
    await _and_its_status(world, body)
    async with world.operator():
        status = await world.reason("JobCreated")
        assert status["attempts"] == 1
        await world.pod()
        await world.kubelet({"running": {"startedAt": "2026-11-23T09:00:05Z"}})
        status = await world.reason("PodRunning")
    assert status["attempts"] == 2
