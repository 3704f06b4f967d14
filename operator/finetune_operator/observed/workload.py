"""Readers of Kueue's Workloads: why a Job is queued.

https://kueue.sigs.k8s.io/docs/concepts/workload/
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.api.labels import QUEUE_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.observed.job import is_job_suspended
from finetune_operator.observed.objects import ReasonMessage, get_creation_time

KUEUE_GROUP = "kueue.x-k8s.io"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Versions of Kueue's API, newest first. The fields that are read here are the same in both."""
JOB_UID_LABEL = f"{KUEUE_GROUP}/job-uid"


def is_queued(job: Body) -> bool:
    """Return whether Kueue manages the Job and keeps it suspended."""
    return is_job_suspended(job) and QUEUE_LABEL in job["metadata"].get("labels", {})


def find_queue_status(workloads: Iterable[Body]) -> ReasonMessage | None:
    """Return Kueue's explanation why a Job is queued: why it was evicted, if it was, and what it waits for now.

    Return None if the newest Workload has no such condition.
    """
    newest = max(workloads, key=get_creation_time, default=None)
    reasons: dict[str, str] = {}
    for condition in _list_blocking_conditions(newest) if newest else ():
        # For a while after an eviction, both conditions have the same message.
        reasons.setdefault(f"{condition.message.rstrip('.')}.", condition.reason)
    if not reasons:
        return None
    (message, reason), *others = reasons.items()
    other_texts = [f"{other_reason}: {other_message}" for other_message, other_reason in others]
    return ReasonMessage(reason, " ".join([message, *other_texts]))


def _list_blocking_conditions(workload: Body) -> list[ReasonMessage]:
    conditions = {condition["type"]: condition for condition in workload.get("status", {}).get("conditions") or []}

    def has_status(condition_type: str, status: str) -> bool:
        return bool(conditions.get(condition_type, {}).get("status") == status)

    blocking = [("Evicted", "True"), ("QuotaReserved", "False")]
    if not has_status("QuotaReserved", "False"):  # The quota is reserved, so only admission checks can be missing.
        blocking.append(("Admitted", "False"))
    return [
        ReasonMessage(conditions[condition_type].get("reason", ""), conditions[condition_type].get("message", ""))
        for condition_type, status in blocking
        if has_status(condition_type, status)
    ]
