"""Pods of ended attempts, and their claims, do not pile up. The tests act as Kubernetes' controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import seconds_ago
from tests.support.operator.namespace_harness import LEASE_NAME, OPERATOR_RULES, build_lease_rules

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

CLAIM = {"compute": {"scratch": {"size": "500Gi", "storageClassName": "fast"}}}
EVICTED = 'Usage of EmptyDir volume "scratch" exceeds the limit "50Gi". '


async def _run_attempt(world: NamespaceHarness, index: int, exit_code: int) -> None:
    name, start = f"bot-{index}", seconds_ago(80 - 4 * index)
    await world.create_pod(index=index)
    await world.report_container_state({"running": {"startedAt": start}}, name=name)
    await world.wait_until(lambda: _has_attempts(world, index))
    terminated = {"exitCode": exit_code, "startedAt": start, "finishedAt": seconds_ago(78 - 4 * index)}
    await world.report_container_state({"terminated": terminated}, "Failed" if exit_code else "Succeeded", name)


async def _has_attempts(world: NamespaceHarness, attempts: int) -> bool:
    return bool((await world.get("finetunejobs")).get("status", {}).get("attempts") == attempts)


async def _list_pod_names(world: NamespaceHarness) -> set[str]:
    """Return the pods that are not deleted. No kubelet removes those that are."""
    pods = await world.list_objects("pods")
    return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


async def _has_pods(world: NamespaceHarness, names: set[str]) -> bool:
    return await _list_pod_names(world) == names


async def _is_job_deleted(world: NamespaceHarness) -> bool:
    return "deletionTimestamp" in (await world.get("jobs"))["metadata"]


async def _refuse_deletions(world: NamespaceHarness, is_refused: bool) -> None:
    rules = [{**rule, "verbs": [verb for verb in rule["verbs"] if verb != "delete"]} for rule in OPERATOR_RULES]
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}/roles/operator"
    lease_rules = build_lease_rules(LEASE_NAME)
    await world.call("PATCH", path, {"rules": [*(rules if is_refused else OPERATOR_RULES), *lease_rules]})


async def test_scratch_claims_of_earlier_attempts_and_of_finished_run_are_freed(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec=CLAIM)
        for index in (1, 2, 3):
            await _run_attempt(world, index, 75)
        await world.wait_until(lambda: _has_pods(world, {"bot-3"}))
        await _run_attempt(world, 4, 0)
        await world.report_job_end("Complete")
        status = await world.wait_for_reason("OutcomeUnavailable")
        await world.wait_until(lambda: _is_job_deleted(world))
    assert (status["phase"], status["attempts"]) == ("Complete", 4)


async def test_scratch_claims_of_run_that_finished_unseen_are_freed(world: NamespaceHarness) -> None:
    """The operator stops between the terminal status and the deletion of the Job."""
    async with world.run_operator():
        await world.create_finetunejob(spec=CLAIM)
        await _run_attempt(world, 1, 0)
        await _refuse_deletions(world, True)
        await world.report_job_end("Complete")
        await world.wait_for_reason("OutcomeUnavailable")
    assert not await _is_job_deleted(world)
    await _refuse_deletions(world, False)
    async with world.run_operator():
        await world.wait_until(lambda: _is_job_deleted(world))


async def test_pods_on_disk_of_node_are_kept_for_logs(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"backoffLimit": 9})
        for index in range(1, 9):
            await _run_attempt(world, index, 75)
        await world.wait_until(lambda: _has_pods(world, {f"bot-{index}" for index in range(3, 9)}))
        await world.report_job_end("Failed", "BackoffLimitExceeded")
        await world.wait_for_reason("BackoffLimitExceeded")
    assert not await _is_job_deleted(world)


async def test_pod_evicted_from_full_scratch_ends_run(world: NamespaceHarness) -> None:
    """Its exit code is one that the Job ignores, so the Job would start another pod."""
    async with world.run_operator():
        await world.create_finetunejob()
        await _run_attempt(world, 1, 143)
        evicted = {"reason": "Evicted", "message": EVICTED}
        await world.call("PATCH", world.path("pods", "bot-1", "status"), {"status": evicted})
        status = await world.wait_for_reason("DiskFull")
        await world.wait_until(lambda: _is_job_deleted(world))
    (failed,) = (condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert EVICTED.strip() in failed["message"]
