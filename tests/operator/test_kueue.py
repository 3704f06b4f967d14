"""Why a Job waits, in Kueue's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.observed import workload
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.state import ObservedState
from finetune_operator.resources.job import QUEUE_LABEL
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.operator.bodies import Build

NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"
FULL = ("QuotaReserved", "False", "WaitingForQuota", "insufficient unused quota for nvidia.com/gpu, 1 more needed")
RESERVED = ("QuotaReserved", "True", "QuotaReserved", "Quota reserved in ClusterQueue gpus")
UNADMITTED = ("Admitted", "False", "NoReservation", "The workload has no reservation")
UNCHECKED = ("Admitted", "False", "UnsatisfiedAdmissionChecks", "The workload has not all checks ready")
ADMITTED = ("Admitted", "True", "Admitted", "The workload is admitted")
EVICTED = ("Evicted", "True", "Preempted", "Preempted to accommodate a workload of higher priority")
RETURNED = ("QuotaReserved", "False", "Pending", "Preempted to accommodate a workload of higher priority")
REQUEUED = ("Evicted", "False", "QuotaReserved", "Previously: Preempted to accommodate a workload")


def _workload(*conditions: tuple[str, str, str, str], created: str = NOW) -> dict[str, Any]:
    keys = ("type", "status", "reason", "message")
    return {
        "metadata": {"name": "job-bot-1", "creationTimestamp": created},
        "status": {"conditions": [dict(zip(keys, each, strict=True)) for each in conditions]},
    }


CASES: dict[str, tuple[list[dict[str, Any]], ReasonMessage | None]] = {
    "no Workload yet": ([], None),
    "not looked at yet": ([{"metadata": {"name": "job-bot-1"}}], None),
    "no conditions": ([{"metadata": {"name": "job-bot-1"}, "status": {"conditions": None}}], None),
    "no quota": ([_workload(FULL, UNADMITTED)], ReasonMessage(FULL[2], f"{FULL[3]}.")),
    "checks": ([_workload(RESERVED, UNCHECKED)], ReasonMessage(UNCHECKED[2], f"{UNCHECKED[3]}.")),
    "admitted": ([_workload(RESERVED, ADMITTED)], None),
    "evicted": ([_workload(EVICTED, RESERVED, ADMITTED)], ReasonMessage(EVICTED[2], f"{EVICTED[3]}.")),
    "evicted, quota returned": (
        [_workload(EVICTED, RETURNED, UNADMITTED)],
        ReasonMessage(EVICTED[2], f"{EVICTED[3]}."),
    ),
    "evicted, waits again": (
        [_workload(EVICTED, FULL, UNADMITTED)],
        ReasonMessage(EVICTED[2], f"{EVICTED[3]}. {FULL[2]}: {FULL[3]}."),
    ),
    "admitted after an eviction": ([_workload(REQUEUED, RESERVED, ADMITTED)], None),
    "an earlier Workload": (
        [_workload(FULL, created=LATER), _workload(EVICTED)],
        ReasonMessage(FULL[2], f"{FULL[3]}."),
    ),
}


@pytest.mark.parametrize(("workloads", "said"), CASES.values(), ids=CASES.keys())
def test_the_reason_for_waiting(workloads: list[dict[str, Any]], said: ReasonMessage | None) -> None:
    assert workload.find_queue_status(workloads) == said


@pytest.mark.parametrize(
    ("suspend", "labels", "held"),
    [(True, {QUEUE_LABEL: "gpus"}, True), (False, {QUEUE_LABEL: "gpus"}, False), (True, {}, False)],
)
def test_a_job_is_held_if_it_is_suspended_and_has_a_queue(
    build: type[Build], suspend: bool, labels: dict[str, str], held: bool
) -> None:
    job = build.job(suspend=suspend)
    job["metadata"]["labels"] = labels
    assert workload.is_queued(job) is held


def test_a_held_job_is_queued_whatever_its_earlier_attempts_left(build: type[Build]) -> None:
    meta = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
    lost = build.pod(state=build.ended(75), phase="Failed")
    for pods in ((), (lost,)):
        seen = ObservedState(
            build.job(suspend=True), pods, queue_status=ReasonMessage("WaitingForQuota", "1 more needed")
        )
        status = compute_status(meta, FineTuneJobStatus(), seen, NOW)
        (condition,) = status.conditions
        assert (condition.type, condition.status, condition.reason) == ("Running", "False", "Queued")
        assert condition.message.startswith("Kueue holds the Job. WaitingForQuota: 1 more needed")
