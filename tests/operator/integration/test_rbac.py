"""The operator's permissions match its requests: none is missing and none is unused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago
from tests.support.operator.namespace_harness import LEASE_NAME, OPERATOR_RULES, build_lease_rules
from tests.support.operator.trial_cluster import TrialCluster

from finetune_operator.kube.client import WORKLOADS

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

# Admission requires it where a Job or a FineTuneJob names its owner, so no request of the operator shows it.
CHECKED_BY_ADMISSION = {
    ("update", "finetune.dev", f"{plural}/finalizers")
    for plural in ("finetunejobs", "finetuneschedules", "finetunesweeps")
}
# The chart adds this right with `kueue.enabled`.
KUEUE = {("list", WORKLOADS[0].group, "workloads")}


def _flatten_rules(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def test_rbac_operator_uses_exactly_its_permissions(world: NamespaceHarness) -> None:
    """Play runs that cause every kind of request. The API server refuses requests without permission."""
    async with world.run_operator():
        await _play_slow_start_and_suspension(world)
        await _play_multi_node_run(world)
        await _play_queued_run(world)
        await _play_retry_with_claim(world)
        await _play_sweep(world)
    assert (
        world.proxy.permissions - KUEUE
        == _flatten_rules([*OPERATOR_RULES, *build_lease_rules(LEASE_NAME)]) - CHECKED_BY_ADMISSION
    )


async def _play_slow_start_and_suspension(world: NamespaceHarness) -> None:
    """Play a run whose pod does not start, so that Events are read, and that is suspended."""
    world.proxy.fail_next("POST", "/jobs", 409, after_effect=True)  # so that it is read
    await world.create_finetunejob("slow")
    await world.create_pod("slow")
    await world.report_container_state({"waiting": {"reason": "ContainerCreating"}}, "Pending", "slow-1")
    await world.wait_until(lambda: _was_permission_used(world, "list", "events"))
    await world.patch_spec({"suspend": True}, "slow")
    await world.wait_for_reason("Suspending", "slow")
    await world.finish_job_deletion("slow")
    await world.wait_for_reason("Suspended", "slow")


async def _play_multi_node_run(world: NamespaceHarness) -> None:
    """Play a multi-node run with a deadline, an end that is seen before that of its pod, and a TTL."""
    world.proxy.fail_next("POST", "/services", 409, after_effect=True)
    await world.create_finetunejob("nodes", {"compute": {"nodes": 2}, "activeDeadlineSeconds": 600})
    await world.create_pod("nodes")
    await world.report_job_start(seconds_ago(20), "nodes")
    await world.report_container_state({"running": {"startedAt": seconds_ago(10)}}, name="nodes-1")
    await world.wait_for_reason("PodRunning", "nodes")
    await world.wait_until(lambda: _was_permission_used(world, "patch", "jobs"))
    await world.report_job_end("Failed", "BackoffLimitExceeded", "nodes", seconds_ago(0))
    await world.wait_for_reason("BackoffLimitExceeded", "nodes")
    await world.patch_spec({"ttlSecondsAfterFinished": 0}, "nodes")
    await world.wait_until(lambda: _was_permission_used(world, "delete", "finetunejobs"))


async def _play_sweep(world: NamespaceHarness) -> None:
    """Play a sweep that is suspended after its first trial was created."""
    cluster = TrialCluster(world)
    await cluster.create_sweep()
    await cluster.wait_for_reason("TrialsActive")
    await cluster.patch_sweep(suspend=True)
    await world.wait_until(lambda: _was_permission_used(world, "patch", "finetunejobs"))


async def _play_queued_run(world: NamespaceHarness) -> None:
    await world.create_finetunejob("queued", labels={"kueue.x-k8s.io/queue-name": "gpus"})
    await world.wait_until(lambda: world.get("jobs", "queued"))
    await world.call("PATCH", world.path("jobs", "queued"), {"spec": {"suspend": True}})
    await world.wait_for_reason("Queued", "queued")


async def _play_retry_with_claim(world: NamespaceHarness) -> None:
    """Play a run whose first pod has a claim and is replaced."""
    await world.create_finetunejob("retried", {"compute": {"scratch": {"storageClassName": "fast"}}})
    for index, code in ((1, 75), (2, 0)):
        started_at, name = seconds_ago(20 - index), f"retried-{index}"
        await world.create_pod("retried", index)
        await world.report_container_state({"running": {"startedAt": started_at}}, name=name)
        await world.wait_for_reason("PodRunning", "retried")
        if code:
            terminated = {"exitCode": code, "startedAt": started_at, "finishedAt": seconds_ago(19 - index)}
            await world.report_container_state({"terminated": terminated}, "Failed", name)
            await world.wait_for_reason("Retrying", "retried")
    await world.wait_until(lambda: _was_permission_used(world, "delete", "pods"))


async def _was_permission_used(world: NamespaceHarness, verb: str, resource: str) -> bool:
    return any((verb, resource) == (permission[0], permission[2]) for permission in world.proxy.permissions)
