"""Why Kueue holds a Job. Pure; the only place that knows the shape of Kueue's objects."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.labels import QUEUE_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import ReasonMessage

KUEUE_GROUP = "kueue.x-k8s.io"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Of its API, newest first; what is read here is the same in both."""
JOB_UID_LABEL = f"{KUEUE_GROUP}/job-uid"


def is_queued(job: Body) -> bool:
    """Whether the Job waits in a queue."""
    return bool(job["spec"].get("suspend")) and QUEUE_LABEL in job["metadata"].get("labels", {})


def find_queue_status(workloads: Iterable[Body]) -> ReasonMessage | None:
    """Why it waits, in Kueue's words: why it was stopped, if it was, and what is missing now."""
    newest = max(workloads, key=lambda workload: str(workload["metadata"].get("creationTimestamp", "")), default=None)
    reasons: dict[str, str] = {}
    for condition in _list_blocking_reasons(newest) if newest else ():
        reasons.setdefault(
            f"{condition.message.rstrip('.')}.", condition.reason
        )  # after an eviction both say the same for a while
    if not reasons:
        return None
    (message, reason), *other_reasons = reasons.items()
    return ReasonMessage(
        reason,
        " ".join([message, *(f"{other_reason}: {other_message}" for other_message, other_reason in other_reasons)]),
    )


def _list_blocking_reasons(workload: Body) -> list[ReasonMessage]:
    conditions = {condition["type"]: condition for condition in workload.get("status", {}).get("conditions") or []}
    blocking_conditions = [("Evicted", "True"), ("QuotaReserved", "False")]
    if not _has_status(conditions, "QuotaReserved", "False"):  # then it waits for admission checks, if for anything
        blocking_conditions.append(("Admitted", "False"))
    return [
        ReasonMessage(conditions[condition_type].get("reason", ""), conditions[condition_type].get("message", ""))
        for condition_type, status in blocking_conditions
        if _has_status(conditions, condition_type, status)
    ]


def _has_status(conditions: dict[str, Body], condition_type: str, status: str) -> bool:
    return conditions.get(condition_type, {}).get("status") == status
