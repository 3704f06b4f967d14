"""The complete lifecycle of a run on a real API server. The test acts as Job controller and kubelet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.operator.namespace_harness import NamespaceHarness

TIMEOUT_SECONDS = 100.0
Status = dict[str, Any]


def _running_state(minute: int) -> dict[str, Any]:
    return {"running": {"startedAt": f"2026-11-23T08:{minute:02}:05Z"}}


def _terminated_state(exit_code: int, minute: int, reason: str) -> dict[str, Any]:
    message = json.dumps({"reason": reason, "message": "said"})
    times = {"startedAt": f"2026-11-23T08:{minute:02}:05Z", "finishedAt": f"2026-11-23T08:{minute + 1:02}:05Z"}
    return {"terminated": {"exitCode": exit_code, "message": message, **times}}


async def _wait_until(world: NamespaceHarness, predicate: Callable[[NamespaceHarness], Awaitable[bool]]) -> None:
    await world.wait_until(lambda: predicate(world), TIMEOUT_SECONDS)


async def play_full_lifecycle(world: NamespaceHarness) -> Status:
    """Start, change, suspend, resume and complete a run. Waits for objects in the cluster, not for the status."""
    await world.create_finetunejob()
    await _wait_until(world, _has_job)
    await world.create_pod()
    await world.report_container_state(_running_state(0))
    await _wait_until(world, _is_running)
    await world.patch_spec({"backoffLimit": 5})
    await _wait_until(world, _has_backoff_limit_of_five)
    await world.patch_spec({"suspend": True})
    await _wait_until(world, _is_job_deleting)
    await world.report_container_state(_terminated_state(143, 0, "Preempted"), "Failed")
    await asyncio.sleep(0.1)
    await world.finish_job_deletion()
    await _wait_until(world, _is_suspended)
    await world.patch_spec({"suspend": False})
    await _wait_until(world, _has_job)
    await world.create_pod(index=2)
    await world.report_container_state(_running_state(4), name="bot-2")
    await _wait_until(world, _is_running)
    await world.report_container_state(_terminated_state(0, 4, "Completed"), "Succeeded", "bot-2")
    await world.report_job_end("Complete")
    await _wait_until(world, _is_complete)
    return _drop_observation_times((await world.get("finetunejobs"))["status"])


def _drop_observation_times(status: Status) -> Status:
    """Remove the times of observation, and what depends on them."""
    condition_times = {"lastTransitionTime"}
    conditions = [
        {key: value for key, value in condition.items() if key not in condition_times}
        for condition in status["conditions"]
    ]
    status_times = {
        "accountedTime",
        "lastAttemptCreationTime",
        "completionTime",
        "activeSeconds",
        "gpuSeconds",
        "progress",
    }
    return {**{key: value for key, value in status.items() if key not in status_times}, "conditions": conditions}


async def _has_job(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" not in (await world.get("jobs"))["metadata"]


async def _has_backoff_limit_of_five(world: NamespaceHarness) -> bool:
    return bool((await world.get("jobs"))["spec"]["backoffLimit"] == 5)


async def _is_job_deleting(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _get_phase(world: NamespaceHarness) -> str:
    return str((await world.get("finetunejobs")).get("status", {}).get("phase"))


async def _is_running(world: NamespaceHarness) -> bool:
    return await _get_phase(world) == "Running"


async def _is_suspended(world: NamespaceHarness) -> bool:
    return await _get_phase(world) == "Suspended"


async def _is_complete(world: NamespaceHarness) -> bool:
    return await _get_phase(world) == "Complete"


def count_jobs_created(world: NamespaceHarness) -> int:
    """Return the number of requests to create a Job."""
    return sum((method, path) == ("POST", world.path("jobs")) for method, path in world.proxy.requests)
