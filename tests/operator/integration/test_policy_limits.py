"""A FineTuneJob outside the policy on a real API server: created objects, status, and continued runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import build_key, get_cache

from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}


def _set_limits(world: NamespaceHarness, bounds: Bounds) -> None:
    world.settings = world.settings.model_copy(update={"bounds": bounds})


async def test_policy_run_outside_limits_fails_without_job(world: NamespaceHarness) -> None:
    _set_limits(world, Bounds(allowed_images=["registry.example/**"], max_nodes=1))
    async with world.run_operator() as operator:
        await world.create_finetunejob(spec={"compute": {"nodes": 2, "image": "evil:1"}})
        status = await world.wait_for_reason("NotAllowed")
        await operator.resync()
        event = await world.wait_until(lambda: _get_first_event(world))
    assert status["phase"] == "Failed"
    assert {condition["type"]: condition["status"] for condition in status["conditions"]} == {
        "Failed": "True", "Stalled": "True", "Running": "False",
    }  # fmt: skip
    for part in ("spec.compute.image: evil:1", "registry.example/**", "spec.compute.nodes: 2 is not allowed"):
        assert part in status["conditions"][0]["message"]
    assert (event["type"], event["reason"]) == ("Warning", "NotAllowed")
    assert [path for _, path in world.proxy.list_writes()] == [world.path("finetunejobs", "bot", "status")]


async def _get_first_event(world: NamespaceHarness) -> dict[str, str] | None:
    return next(iter(await world.list_objects("events")), None)


async def test_policy_limits_tightened_keeps_running_run(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(RUNNING)
        await world.wait_for_reason("PodRunning")
    _set_limits(world, Bounds(max_gpus=0))
    async with world.run_operator():
        await world.patch_spec({"backoffLimit": 5})  # shows that it is reconciled
        await world.wait_until(lambda: _has_backoff_limit(world, 5))
        assert (await world.wait_for_reason("PodRunning"))["phase"] == "Running"
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
        await world.finish_job_deletion()
        await world.wait_for_reason("Suspended")
        await world.patch_spec({"suspend": False})  # the limits apply again when it resumes
        await world.wait_for_reason("NotAllowed")
    assert await world.list_objects("jobs") == []


async def _has_backoff_limit(world: NamespaceHarness, limit: int) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == limit)


async def test_policy_uncached_job_is_adopted_despite_new_limits(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
    _set_limits(world, Bounds(max_gpus=0))
    async with world.run_operator() as operator:
        get_cache(operator).jobs.clear()
        operator.workers.enqueue(build_key("bot", world.namespace))
        await world.create_pod()
        await world.report_container_state(RUNNING)
        status = await world.wait_for_reason("PodRunning")
    assert status["phase"] == "Running"


async def test_policy_suspended_run_brought_within_limits_starts(world: NamespaceHarness) -> None:
    _set_limits(world, Bounds(max_nodes=1))
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2}, "suspend": True})
        await world.wait_for_reason("Suspended")
        await world.patch_spec({"compute": {"nodes": 1}})
        await world.patch_spec({"suspend": False})
        await world.wait_for_reason("JobCreated")
