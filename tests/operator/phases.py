"""A run brought into each phase, and its deletion, on a real API server; tests play Kubernetes' controllers."""

from __future__ import annotations

import asyncio
import json

from tests.operator.bodies import Body
from tests.operator.world import World

RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
OWNED = ("jobs", "services", "pods")


def ended(code: int, reason: str) -> Body:
    """The trainer container's state."""
    times = {"startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:09:05Z"}
    return {"terminated": {"exitCode": code, "message": json.dumps({"reason": reason, "message": "said"}), **times}}


async def _pending(world: World) -> None:
    await world.apply(spec={"compute": {"nodes": 2}})
    await world.pod()
    await world.reason("PodPending")


async def _running(world: World) -> None:
    await _pending(world)
    await world.kubelet(RUNNING)
    await world.reason("PodRunning")


async def _suspended(world: World) -> None:
    await _running(world)
    await world.change({"suspend": True})
    await world.reason("Suspending")
    await world.collect()
    await world.reason("Suspended")


async def _finished(world: World) -> None:
    await _running(world)
    await world.kubelet(ended(0, "Completed"), "Succeeded")
    await world.job_ends("Complete")
    await world.reason("Completed")


PHASES = {"pending": _pending, "running": _running, "suspended": _suspended, "finished": _finished}


async def collect_garbage(world: World, uid: str) -> None:
    """What the garbage collector does when an owner is gone: all goes that it owned, by whatever chain."""
    gone, options = {uid}, {"gracePeriodSeconds": 0, "propagationPolicy": "Background"}
    for plural in OWNED:
        for body in await world.all(plural):
            meta = body["metadata"]
            if gone & {each["uid"] for each in meta.get("ownerReferences", [])}:
                gone.add(meta["uid"])
                await world.call("DELETE", world.path(plural, meta["name"]), options)


async def delete(world: World, body: Body) -> None:
    """By a person, and what it owned by the garbage collector."""
    await world.delete("finetunejobs")
    await asyncio.sleep(0.2)
    await collect_garbage(world, body["metadata"]["uid"])


async def _delete_after_all_it_owns(world: World, body: Body) -> None:
    """As `kubectl delete --cascade=foreground`: it stays, marked, until the garbage collector has done its work."""
    await world.call("DELETE", world.path("finetunejobs", "bot"), {"propagationPolicy": "Foreground"})
    await asyncio.sleep(0.2)
    await collect_garbage(world, body["metadata"]["uid"])
    await asyncio.sleep(0.2)
    await world.call("PATCH", world.path("finetunejobs", "bot"), {"metadata": {"finalizers": None}})


DELETIONS = {"background": delete, "foreground": _delete_after_all_it_owns}


async def nothing_is_left(world: World) -> bool:
    """Of anything that an operator makes or looks at."""
    return not [each for plural in ("finetunejobs", *OWNED) for each in await world.all(plural)]
