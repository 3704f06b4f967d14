"""A FineTuneJob that is out of bounds, on a real API server: what is made, what is said, and what goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


def _bounded(world: World, bounds: Bounds) -> None:
    world.settings = world.settings.model_copy(update={"bounds": bounds})


async def test_it_fails_for_good_before_anything_exists(world: World) -> None:
    _bounded(world, Bounds(allowed_images=["registry.example/**"], max_nodes=1))
    async with world.operator() as operator:
        await world.apply(spec={"compute": {"nodes": 2, "image": "evil:1"}})
        status = await world.reason("NotAllowed")
        await operator.resync()
        event = await world.until(lambda: _event(world))
    assert status["phase"] == "Failed"
    assert {each["type"]: each["status"] for each in status["conditions"]} == {
        "Failed": "True", "Stalled": "True", "Running": "False",
    }  # fmt: skip
    for part in ("spec.compute.image: evil:1", "registry.example/**", "spec.compute.nodes: 2 is not allowed"):
        assert part in status["conditions"][0]["message"]
    assert (event["type"], event["reason"]) == ("Warning", "NotAllowed")
    assert [path for _, path in world.proxy.writes()] == [world.path("finetunejobs", "bot", "status")]


async def _event(world: World) -> dict[str, str] | None:
    return next(iter(await world.all("events")), None)


async def test_one_that_runs_goes_on_when_bounds_are_tightened(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(RUNNING)
        await world.reason("PodRunning")
    _bounded(world, Bounds(max_gpus=0))
    async with world.operator():
        await world.change({"backoffLimit": 5})  # shows that it is looked at
        await world.until(lambda: _has_backoff_limit(world, 5))
        assert (await world.reason("PodRunning"))["phase"] == "Running"
        await world.change({"suspend": True})
        await world.reason("Suspending")
        await world.collect()
        await world.reason("Suspended")
        await world.change({"suspend": False})  # what is asked for now is asked for anew
        await world.reason("NotAllowed")
    assert await world.all("jobs") == []


async def _has_backoff_limit(world: World, limit: int) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == limit)


async def test_a_job_that_was_not_seen_yet_was_made_within_bounds(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
    _bounded(world, Bounds(max_gpus=0))
    async with world.operator() as operator:
        operator.cache.jobs.clear()
        operator.workers.enqueue((world.namespace, "bot"))
        await world.pod()
        await world.kubelet(RUNNING)
        status = await world.reason("PodRunning")
    assert status["phase"] == "Running"


async def test_one_that_is_suspended_may_be_brought_within_bounds(world: World) -> None:
    _bounded(world, Bounds(max_nodes=1))
    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2}, "suspend": True})
        await world.reason("Suspended")
        await world.change({"compute": {"nodes": 1}})
        await world.change({"suspend": False})
        await world.reason("JobCreated")
