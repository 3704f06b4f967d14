"""A finished run stays finished, whatever is done to its Job, to the CRD and to the operator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_key

from finetune_operator.codegen.crd import build_crd
from finetune_operator.manager import Manager
from finetune_operator.telemetry import counters

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RESTARTS = 1000
ENDS = {"done": (0, "Completed", "Succeeded"), "broken": (42, "DataInvalid", "Failed")}


def _terminated_state(code: int, reason: str) -> dict[str, Any]:
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {"terminated": {"exitCode": code, "message": json.dumps({"reason": reason, "message": ""}), **times}}


async def _finish_runs(world: NamespaceHarness) -> None:
    for name, (code, reason, phase) in ENDS.items():
        await world.create_finetunejob(name)
        await world.create_pod(name)
        await world.report_container_state(_terminated_state(code, reason), phase, f"{name}-1")
        await world.report_job_end("Failed" if code else "Complete", name=name)
        await world.wait_for_reason(reason, name)


async def _delete_jobs(world: NamespaceHarness) -> None:
    """Delete all Jobs, as a user or a TTL of the Job does."""
    for name in ENDS:
        await world.delete("pods", f"{name}-1")
        await world.delete("jobs", name)


async def _delete_pods(world: NamespaceHarness) -> None:
    for name in ENDS:
        await world.delete("pods", f"{name}-1")


async def _apply_crd_again(world: NamespaceHarness) -> None:
    definition = build_crd()
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
    await world.call("PATCH", path, {"spec": definition["spec"]})


async def _remove_status_fields_of_newer_operator(world: NamespaceHarness) -> None:
    new = ("lastAttemptTime", "activeSeconds", "gpuSeconds", "accountedTime", "observedGeneration")
    for name in ENDS:
        await world.call("PATCH", world.path("finetunejobs", name, "status"), {"status": dict.fromkeys(new)})


async def _suspend_and_resume(world: NamespaceHarness) -> None:
    for name in ENDS:
        await world.patch_spec({"suspend": True}, name)
    await asyncio.sleep(0.3)
    for name in ENDS:
        await world.patch_spec({"suspend": False, "backoffLimit": 9, "activeDeadlineSeconds": 5}, name)


DISTURBANCES: dict[str, Callable[[NamespaceHarness], Awaitable[None]]] = {
    "Jobs and pods deleted": _delete_jobs,
    "pods deleted": _delete_pods,
    "CRD applied again": _apply_crd_again,
    "operator upgraded": _remove_status_fields_of_newer_operator,
    "suspended and resumed": _suspend_and_resume,
}


async def _get_conditions(world: NamespaceHarness) -> dict[str, Any]:
    statuses = {name: (await world.get("finetunejobs", name))["status"] for name in ENDS}
    return {
        name: {
            condition["type"]: (condition["status"], condition["reason"], condition["lastTransitionTime"])
            for condition in status["conditions"]
        }
        for name, status in statuses.items()
    }


@pytest.mark.parametrize("disturbance", DISTURBANCES)
async def test_finished_run_disturbed_keeps_conditions(world: NamespaceHarness, disturbance: str) -> None:
    async with world.run_operator() as operator:
        await _finish_runs(world)
        before = await _get_conditions(world)
        world.proxy.requests.clear()
        await DISTURBANCES[disturbance](world)
        await operator.resync()
        await asyncio.sleep(0.5)
    async with world.run_operator() as operator:  # and again by the next one
        await operator.resync()
        await asyncio.sleep(0.5)
    assert await _get_conditions(world) == before
    assert {path.rpartition("/")[2] for _, path in world.proxy.list_writes()} <= {"status"}


def _count_reconciles() -> float:
    return counters.REGISTRY.get_sample_value("finetune_operator_reconciles_total", {"result": "success"}) or 0.0


async def test_operator_restarted_1000_times_writes_nothing(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await _finish_runs(world)
        await world.create_finetunejob("running")
        await world.create_pod("running")
        await world.report_container_state({"running": {"startedAt": "2026-11-23T08:00:05Z"}}, name="running-1")
        await world.wait_for_reason("PodRunning", "running")
    world.proxy.requests.clear()
    for _ in range(RESTARTS):
        operator = Manager(world.settings)
        before = _count_reconciles()
        await operator.start()
        for name in ENDS:  # by default it reconciles only runs that have not ended
            operator.workers.enqueue(build_key(name, world.namespace))
        while _count_reconciles() < before + 3:
            await asyncio.sleep(0)
        await operator.stop()
    assert world.proxy.list_writes() == []
    assert len(world.proxy.requests) == 5 * RESTARTS  # lists
