"""What the operator may do is what it does: no request without a right, no right without a request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.operator.world import LEASE, RULES, lease_rules

from finetune_operator.kube.client import WORKLOADS

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

# Asked for by admission where a Job names its owner, so no request of the operator's own shows it.
BY_ADMISSION = {("update", "finetune.dev", "finetunejobs/finalizers")}
# The chart adds this right with `kueue.enabled`.
KUEUE = {("list", WORKLOADS[0].api_path.split("/")[2], "workloads")}


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _rights(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def test_every_right_is_used_and_none_is_missing(world: World) -> None:
    """Lives that take every turn. What they ask for without a right the real API server refuses."""
    async with world.operator():
        await _slow_start_and_suspension(world)
        await _several_nodes_and_an_end(world)
        await _queued(world)
    assert world.proxy.rights - KUEUE == _rights([*RULES, *lease_rules(LEASE)]) - BY_ADMISSION


async def _slow_start_and_suspension(world: World) -> None:
    """A pod that does not start is asked about; the Job is deleted."""
    world.proxy.fail("POST", "/jobs", 409, late=True)  # so that it is read
    await world.apply("slow")
    await world.pod("slow")
    await world.kubelet({"waiting": {"reason": "ContainerCreating"}}, "Pending", "slow-1")
    await world.until(lambda: _was_asked_for(world, "list", "events"))
    await world.change({"suspend": True}, "slow")
    await world.reason("Suspending", "slow")
    await world.collect("slow")
    await world.reason("Suspended", "slow")


async def _several_nodes_and_an_end(world: World) -> None:
    """Pods that meet, a deadline that is kept, an end that is seen before the pod's, and a time to live."""
    world.proxy.fail("POST", "/services", 409, late=True)
    await world.apply("nodes", {"compute": {"nodes": 2}, "activeDeadlineSeconds": 600})
    await world.pod("nodes")
    await world.job_starts(_ago(20), "nodes")
    await world.kubelet({"running": {"startedAt": _ago(10)}}, name="nodes-1")
    await world.reason("PodRunning", "nodes")
    await world.until(lambda: _was_asked_for(world, "patch", "jobs"))
    await world.job_ends("Failed", "BackoffLimitExceeded", "nodes", _ago(0))
    await world.reason("BackoffLimitExceeded", "nodes")
    await world.change({"ttlSecondsAfterFinished": 0}, "nodes")
    await world.until(lambda: _was_asked_for(world, "delete", "finetunejobs"))


async def _queued(world: World) -> None:
    await world.apply("queued", labels={"kueue.x-k8s.io/queue-name": "gpus"})
    await world.until(lambda: world.get("jobs", "queued"))
    await world.call("PATCH", world.path("jobs", "queued"), {"spec": {"suspend": True}})
    await world.reason("Queued", "queued")


async def _was_asked_for(world: World, verb: str, resource: str) -> bool:
    return any((verb, resource) == (right[0], right[2]) for right in world.proxy.rights)
