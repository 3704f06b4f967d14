"""Kueue's explanation why a Job is queued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.labels import QUEUE_LABEL
from finetune_operator.observed import workload
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"
QUOTA_PENDING = (
    "QuotaReserved",
    "False",
    "WaitingForQuota",
    "insufficient unused quota for nvidia.com/gpu, 1 more needed",
)
RESERVED = ("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue gpus")
NOT_ADMITTED = ("Admitted", "False", "NoReservation", "The workload has no reservation")
CHECKS_PENDING = ("Admitted", "False", "UnsatisfiedAdmissionChecks", "The workload has not all checks ready")
ADMITTED = ("Admitted", "True", "Admitted", "The workload is admitted")
EVICTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload of higher priority")
QUOTA_RETURNED = ("QuotaReserved", "False", "Pending", "Preempted to accommodate a workload of higher priority")
REQUEUED = ("Evicted", "False", "QuotaReserved", "Previously: Preempted to accommodate a workload")


def _build_workload(*conditions: tuple[str, str, str, str], created: str = NOW) -> dict[str, Any]:
    keys = ("type", "status", "reason", "message")
    return {
        "metadata": {"name": "job-bot-1", "creationTimestamp": created},
        "status": {"conditions": [dict(zip(keys, condition, strict=True)) for condition in conditions]},
    }


CASES: dict[str, tuple[list[dict[str, Any]], ReasonMessage | None]] = {
    "no Workload yet": ([], None),
    "no status yet": ([{"metadata": {"name": "job-bot-1"}}], None),
    "no conditions": ([{"metadata": {"name": "job-bot-1"}, "status": {"conditions": None}}], None),
    "no quota": (
        [_build_workload(QUOTA_PENDING, NOT_ADMITTED)],
        ReasonMessage(QUOTA_PENDING[2], f"{QUOTA_PENDING[3]}."),
    ),
    "admission checks missing": (
        [_build_workload(RESERVED, CHECKS_PENDING)],
        ReasonMessage(CHECKS_PENDING[2], f"{CHECKS_PENDING[3]}."),
    ),
    "admitted": ([_build_workload(RESERVED, ADMITTED)], None),
    "evicted": ([_build_workload(EVICTED, RESERVED, ADMITTED)], ReasonMessage(EVICTED[2], f"{EVICTED[3]}.")),
    "evicted, quota returned": (
        [_build_workload(EVICTED, QUOTA_RETURNED, NOT_ADMITTED)],
        ReasonMessage(EVICTED[2], f"{EVICTED[3]}."),
    ),
    "evicted, no quota": (
        [_build_workload(EVICTED, QUOTA_PENDING, NOT_ADMITTED)],
        ReasonMessage(EVICTED[2], f"{EVICTED[3]}. {QUOTA_PENDING[2]}: {QUOTA_PENDING[3]}."),
    ),
    "admitted after eviction": ([_build_workload(REQUEUED, RESERVED, ADMITTED)], None),
    "earlier Workload evicted": (
        [_build_workload(QUOTA_PENDING, created=LATER), _build_workload(EVICTED)],
        ReasonMessage(QUOTA_PENDING[2], f"{QUOTA_PENDING[3]}."),
    ),
}


@pytest.mark.parametrize(("workloads", "expected"), CASES.values(), ids=CASES)
def test_find_queue_status_returns_blocking_conditions_of_newest_workload(
    workloads: list[dict[str, Any]], expected: ReasonMessage | None
) -> None:
    assert workload.find_queue_status(workloads) == expected


@pytest.mark.parametrize(
    ("suspend", "labels", "queued"),
    [(True, {QUEUE_LABEL: "gpus"}, True), (False, {QUEUE_LABEL: "gpus"}, False), (True, {}, False)],
)
def test_is_queued_suspended_job_with_queue_label(
    build: type[Builders], suspend: bool, labels: dict[str, str], queued: bool
) -> None:
    job = build.job(suspend=suspend)
    job["metadata"]["labels"] = labels
    assert workload.is_queued(job) is queued


def test_job_status_queued_job_with_failed_attempt_is_queued(build: type[Builders]) -> None:
    meta = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
    failed_pod = build.pod(state=build.terminated(75), phase="Failed")
    for pods in ((), (failed_pod,)):
        observed = ObservedState(
            build.job(suspend=True), pods, queue_status=ReasonMessage("WaitingForQuota", "1 more needed")
        )
        status = compute_status(meta, FineTuneJobStatus(), observed, NOW)
        (condition,) = status.conditions
        assert (condition.type, condition.status, condition.reason) == ("Running", "False", "Queued")
        assert condition.message.startswith("Kueue holds the Job. WaitingForQuota: 1 more needed")
