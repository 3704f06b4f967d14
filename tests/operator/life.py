"""One life of a run on a real API server; the test plays Job controller and kubelet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.operator.world import World

PATIENCE = 100.0
Status = dict[str, Any]


def _running(minute: int) -> dict[str, Any]:
    return {"running": {"startedAt": f"2026-11-23T08:{minute:02}:05Z"}}


def _ended(code: int, minute: int, reason: str) -> dict[str, Any]:
    word = json.dumps({"reason": reason, "message": "said"})
    times = {"startedAt": f"2026-11-23T08:{minute:02}:05Z", "finishedAt": f"2026-11-23T08:{minute + 1:02}:05Z"}
    return {"terminated": {"exitCode": code, "message": word, **times}}


async def _until(world: World, what: Callable[[World], Awaitable[bool]]) -> None:
    await world.until(lambda: what(world), PATIENCE)


async def live(world: World) -> Status:
    """Started, changed, suspended, resumed, completed; waits for what stands in the cluster, not for its status."""
    await world.apply()
    await _until(world, _has_job)
    await world.pod()
    await world.kubelet(_running(0))
    await _until(world, _runs)
    await world.change({"backoffLimit": 5})
    await _until(world, _has_five_attempts)
    await world.change({"suspend": True})
    await _until(world, _is_leaving)
    await world.kubelet(_ended(143, 0, "Preempted"), "Failed")
    await asyncio.sleep(0.1)
    await world.collect()
    await _until(world, _is_suspended)
    await world.change({"suspend": False})
    await _until(world, _has_job)
    await world.pod(index=2)
    await world.kubelet(_running(4), name="bot-2")
    await _until(world, _runs)
    await world.kubelet(_ended(0, 4, "Completed"), "Succeeded", "bot-2")
    await world.job_ends("Complete")
    await _until(world, _is_complete)
    return _lasting((await world.get("finetunejobs"))["status"])


def _lasting(status: Status) -> Status:
    """Without the times at which the operator saw it, and what follows from them."""
    seen = {"lastTransitionTime"}
    conditions = [{key: value for key, value in each.items() if key not in seen} for each in status["conditions"]]
    times = {"accountedTime", "completionTime", "activeSeconds", "gpuSeconds", "progress"}
    return {**{key: value for key, value in status.items() if key not in times}, "conditions": conditions}


async def _has_job(world: World) -> bool:
    return "deletionTimestamp" not in (await world.get("jobs"))["metadata"]


async def _has_five_attempts(world: World) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == 5)


async def _is_leaving(world: World) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _phase(world: World) -> str:
    return str((await world.get("finetunejobs")).get("status", {}).get("phase"))


async def _runs(world: World) -> bool:
    return await _phase(world) == "Running"


async def _is_suspended(world: World) -> bool:
    return await _phase(world) == "Suspended"


async def _is_complete(world: World) -> bool:
    return await _phase(world) == "Complete"


def jobs_created(world: World) -> int:
    """How many times the operator asked for one."""
    return sum((method, path) == ("POST", world.path("jobs")) for method, path in world.proxy.seen)
