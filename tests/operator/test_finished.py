"""A finished run stays finished, whatever is done to its Job, to the CRD and to the operator."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import kopf
import pytest

from finetune_operator.codegen.crd import build_crd
from finetune_operator.manager import Manager
from finetune_operator.telemetry import counters

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RESTARTS = 1000
ENDS = {"done": (0, "Completed", "Succeeded"), "broken": (42, "DataInvalid", "Failed")}


def _ended(code: int, reason: str) -> dict[str, Any]:
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {"terminated": {"exitCode": code, "message": json.dumps({"reason": reason, "message": ""}), **times}}


async def _finish_both(world: World) -> None:
    for name, (code, reason, phase) in ENDS.items():
        await world.apply(name)
        await world.pod(name)
        await world.kubelet(_ended(code, reason), phase, f"{name}-1")
        await world.job_ends("Failed" if code else "Complete", name=name)
        await world.reason(reason, name)


async def _delete_jobs(world: World) -> None:
    """By hand, or by a time to live that somebody gave them."""
    for name in ENDS:
        await world.delete("pods", f"{name}-1")
        await world.delete("jobs", name)


async def _delete_pods(world: World) -> None:
    for name in ENDS:
        await world.delete("pods", f"{name}-1")


async def _apply_crd_again(world: World) -> None:
    definition = build_crd()
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
    await world.call("PATCH", path, {"spec": definition["spec"]})


async def _forget_what_an_older_operator_did_not_know(world: World) -> None:
    new = ("lastAttemptTime", "activeSeconds", "gpuSeconds", "accountedTime", "observedGeneration")
    for name in ENDS:
        await world.call("PATCH", world.path("finetunejobs", name, "status"), {"status": dict.fromkeys(new)})


async def _suspend(world: World) -> None:
    for name in ENDS:
        await world.change({"suspend": True}, name)
    await asyncio.sleep(0.3)
    for name in ENDS:
        await world.change({"suspend": False, "backoffLimit": 9, "activeDeadlineSeconds": 5}, name)


DISTURBANCES: dict[str, Callable[[World], Awaitable[None]]] = {
    "Jobs and pods deleted": _delete_jobs,
    "pods deleted": _delete_pods,
    "CRD applied again": _apply_crd_again,
    "operator upgraded": _forget_what_an_older_operator_did_not_know,
    "suspended and resumed": _suspend,
}


async def _conditions(world: World) -> dict[str, Any]:
    statuses = {name: (await world.get("finetunejobs", name))["status"] for name in ENDS}
    return {
        name: {
            each["type"]: (each["status"], each["reason"], each["lastTransitionTime"]) for each in status["conditions"]
        }
        for name, status in statuses.items()
    }


@pytest.mark.parametrize("disturbance", DISTURBANCES)
async def test_a_finished_run_stays_finished(world: World, disturbance: str) -> None:
    async with world.operator() as operator:
        await _finish_both(world)
        before = await _conditions(world)
        world.proxy.seen.clear()
        await DISTURBANCES[disturbance](world)
        await operator.resync()
        await asyncio.sleep(0.5)
    async with world.operator() as operator:  # and again by the next one
        await operator.resync()
        await asyncio.sleep(0.5)
    assert await _conditions(world) == before
    assert {path.rpartition("/")[2] for _, path in world.proxy.writes()} <= {"status"}


def _looked_at() -> float:
    return counters.REGISTRY.get_sample_value("finetune_operator_reconciles_total", {"result": "success"}) or 0.0


async def test_a_thousand_restarts_write_nothing(world: World) -> None:
    async with world.operator():
        await _finish_both(world)
        await world.apply("running")
        await world.pod("running")
        await world.kubelet({"running": {"startedAt": "2026-11-23T08:00:05Z"}}, name="running-1")
        await world.reason("PodRunning", "running")
    world.proxy.seen.clear()
    for _ in range(RESTARTS):
        operator = Manager(world.settings)
        before = _looked_at()
        await operator.start(kopf.OperatorSettings())
        for name in ENDS:  # by itself it looks at those alone that have not ended
            operator.workers.enqueue((world.namespace, name))
        while _looked_at() < before + 3:
            await asyncio.sleep(0)
        await operator.stop()
    assert world.proxy.writes() == []
    assert len(world.proxy.seen) == 3 * RESTARTS
