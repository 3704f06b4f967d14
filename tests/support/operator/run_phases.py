"""Bring a run into each phase, and delete it, on a real API server. Acts as Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json

from tests.support.operator.builders import Body
from tests.support.operator.namespace_harness import NamespaceHarness

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
OWNED_PLURALS = ("jobs", "services", "pods")


def build_outcome_state(exit_code: int, reason: str) -> Body:
    """Build the state of a trainer container that ended with this outcome."""
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {
        "terminated": {"exitCode": exit_code, "message": json.dumps({"reason": reason, "message": "said"}), **times}
    }


async def _start_pending_run(world: NamespaceHarness) -> None:
    await world.create_finetunejob(spec={"compute": {"nodes": 2}})
    await world.create_pod()
    await world.wait_for_reason("PodPending")


async def _start_running_run(world: NamespaceHarness) -> None:
    await _start_pending_run(world)
    await world.report_container_state(RUNNING)
    await world.wait_for_reason("PodRunning")


async def _suspend_run(world: NamespaceHarness) -> None:
    await _start_running_run(world)
    await world.patch_spec({"suspend": True})
    await world.wait_for_reason("Suspending")
    await world.finish_job_deletion()
    await world.wait_for_reason("Suspended")


async def _complete_run(world: NamespaceHarness) -> None:
    await _start_running_run(world)
    await world.report_container_state(build_outcome_state(0, "Completed"), "Succeeded")
    await world.report_job_end("Complete")
    await world.wait_for_reason("Completed")


PHASES = {
    "pending": _start_pending_run,
    "running": _start_running_run,
    "suspended": _suspend_run,
    "finished": _complete_run,
}


async def collect_garbage(world: NamespaceHarness, uid: str) -> None:
    """Act as the garbage collector: delete all objects whose owner is deleted, transitively."""
    deleted_uids, options = {uid}, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
    for plural in OWNED_PLURALS:
        for body in await world.list_objects(plural):
            meta = body["metadata"]
            if deleted_uids & {reference["uid"] for reference in meta.get("ownerReferences", [])}:
                deleted_uids.add(meta["uid"])
                await world.call("DELETE", world.path(plural, meta["name"]), options)


async def delete_in_background(world: NamespaceHarness, body: Body) -> None:
    """Delete a run as its user and its objects as the garbage collector."""
    await world.delete("finetunejobs")
    await asyncio.sleep(0.2)
    await collect_garbage(world, body["metadata"]["uid"])


async def _delete_in_foreground(world: NamespaceHarness, body: Body) -> None:
    """Delete as `kubectl delete --cascade=foreground`: the owner stays until its objects are deleted."""
    await world.call("DELETE", world.path("finetunejobs", "bot"), {"propagationPolicy": "Foreground"})
    await asyncio.sleep(0.2)
    await collect_garbage(world, body["metadata"]["uid"])
    await asyncio.sleep(0.2)
    await world.call("PATCH", world.path("finetunejobs", "bot"), {"metadata": {"finalizers": None}})


DELETIONS = {"background": delete_in_background, "foreground": _delete_in_foreground}


async def is_everything_deleted(world: NamespaceHarness) -> bool:
    """Return whether no object is left that the operator creates or reads."""
    return not [body for plural in ("finetunejobs", *OWNED_PLURALS) for body in await world.list_objects(plural)]
