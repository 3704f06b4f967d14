"""Evictions of pods that used more storage than they may: the run fails as `DiskFull` in the kubelet's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.run_state_table import (
    JOB_BACKOFF_LIMIT_EXCEEDED,
    META,
    NOW,
    build_termination_message,
)

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

# https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/eviction/helpers.go
SCRATCH_EXCEEDED = 'Usage of EmptyDir volume "scratch" exceeds the limit "20Mi". '
SHARED_MEMORY_EXCEEDED = 'Usage of EmptyDir volume "shared-memory" exceeds the limit "2Gi". '
POD_LIMIT_EXCEEDED = "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. "
CONTAINER_LIMIT_EXCEEDED = 'Container trainer exceeded its local ephemeral storage limit "1Mi". '
NODE_PRESSURE = (
    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. Container trainer was "
    "using 40Gi, request is 50Gi, has larger consumption of ephemeral-storage. "
)
LIMITS = {
    SCRATCH_EXCEEDED: "Raise spec.compute.scratch.size.",
    SHARED_MEMORY_EXCEEDED: "Give volume shared-memory of the pod more space.",
    POD_LIMIT_EXCEEDED: "Raise ephemeral-storage in spec.compute.resources.limits",
    CONTAINER_LIMIT_EXCEEDED: "Raise ephemeral-storage in spec.compute.resources.limits",
}


def _build_evicted_pod(build: type[Builders], message: str, exit_code: int, **extra: Any) -> dict[str, Any]:
    outcome = build_termination_message("Preempted", "terminated by SIGTERM") if exit_code == 143 else ""
    state = build.terminated(exit_code, outcome)
    return build.pod(state=state, phase="Failed", reason="Evicted", message=message, **extra)


def _compute(observed: ObservedState) -> FineTuneJobStatus:
    return compute_status(META, FineTuneJobStatus(), observed, NOW)


@pytest.mark.parametrize("exit_code", [143, 137], ids=["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize(("message", "remedy"), LIMITS.items(), ids=["scratch", "shared memory", "pod", "container"])
@pytest.mark.parametrize("conditions", [None, JOB_BACKOFF_LIMIT_EXCEEDED], ids=["Job active", "Job failed"])
def test_eviction_storage_limit_ends_run_as_disk_full(
    build: type[Builders], message: str, remedy: str, exit_code: int, conditions: dict[str, tuple[str, str]] | None
) -> None:
    """Its exit code may be one that the Job does not count, so that no bound would end the run."""
    status = _compute(ObservedState(build.job(conditions), (_build_evicted_pod(build, message, exit_code),)))
    (failed,) = (condition for condition in status.conditions if condition.type == "Failed")
    assert (status.phase, failed.reason) == ("Failed", "DiskFull")
    assert message.strip() in failed.message
    assert remedy in failed.message


def test_eviction_storage_limit_of_worker_ends_run(build: type[Builders]) -> None:
    worker = _build_evicted_pod(build, SCRATCH_EXCEEDED, 143)
    worker["metadata"] |= {"name": "bot-1-x", "annotations": {"batch.kubernetes.io/job-completion-index": "1"}}
    rank_zero = build.pod("bot-0-x", state={"running": {"startedAt": NOW}}, phase="Running")
    assert _compute(ObservedState(build.job(), (rank_zero, worker))).phase == "Failed"


def test_eviction_storage_limit_replacement_pod_runs_ends_run(build: type[Builders]) -> None:
    """The Job may have started the next pod before the operator saw the eviction."""
    evicted = _build_evicted_pod(build, SCRATCH_EXCEEDED, 143)
    running = build.pod("bot-2", state={"running": {"startedAt": NOW}}, phase="Running", created="2026-11-23T09:00:00Z")
    assert _compute(ObservedState(build.job(), (evicted, running))).phase == "Failed"


def test_eviction_node_pressure_is_retried_in_words_of_kubelet(build: type[Builders]) -> None:
    status = _compute(ObservedState(build.job(), (_build_evicted_pod(build, NODE_PRESSURE, 143),)))
    assert status.conditions[0].reason == "Retrying"
    assert f"The pod was evicted: {NODE_PRESSURE.strip()}" in status.conditions[0].message
    assert "Preempted" in status.conditions[0].message


def test_eviction_while_suspended_is_no_failure(build: type[Builders]) -> None:
    observed = ObservedState(build.job(), (_build_evicted_pod(build, SCRATCH_EXCEEDED, 143),))
    suspended = ObservedState(observed.job, observed.pods, run_policy=observed.run_policy._replace(suspend=True))
    assert _compute(suspended).phase == "Pending"


@pytest.mark.parametrize(
    ("conditions", "phase", "reason"),
    [(None, "Running", "Finishing"), (JOB_BACKOFF_LIMIT_EXCEEDED, "Complete", "Completed")],
    ids=["Job active", "Job failed"],
)
def test_eviction_after_success_is_no_failure(
    build: type[Builders], conditions: dict[str, tuple[str, str]] | None, phase: str, reason: str
) -> None:
    """The kubelet reports a pod as failed if it decided to evict it before the trainer ended."""
    state = build.terminated(0, build_termination_message("Completed"))
    pod = build.pod(state=state, phase="Failed", reason="Evicted", message=SCRATCH_EXCEEDED)
    status = _compute(ObservedState(build.job(conditions), (pod,)))
    assert (status.phase, status.reason) == (phase, reason)
