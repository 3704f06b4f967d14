"""Why Kueue holds a Job. Pure; the only place that knows the shape of Kueue's objects."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator.observed.objects import Body, Said
from finetune_operator.resources.job import QUEUE_LABEL

GROUP = "kueue.x-k8s.io"
VERSIONS = ("v1beta2", "v1beta1")
"""Of its API, newest first; what is read here is the same in both."""
JOB_UID_LABEL = f"{GROUP}/job-uid"


def holds(job: Body) -> bool:
    """Whether the Job waits in a queue."""
    return bool(job["spec"].get("suspend")) and QUEUE_LABEL in job["metadata"].get("labels", {})


def waiting(workloads: Iterable[Body]) -> Said | None:
    """Why it waits, in Kueue's words: why it was stopped, if it was, and what is missing now."""
    last = max(workloads, key=lambda each: str(each["metadata"].get("creationTimestamp", "")), default=None)
    reasons: dict[str, str] = {}
    for each in _said(last) if last else ():
        reasons.setdefault(
            f"{each.message.rstrip('.')}.", each.reason
        )  # after an eviction both say the same for a while
    if not reasons:
        return None
    (message, reason), *more = reasons.items()
    return Said(reason, " ".join([message, *(f"{why}: {what}" for what, why in more)]))


def _said(workload: Body) -> list[Said]:
    known = {each["type"]: each for each in workload.get("status", {}).get("conditions") or []}
    wanted = [("Evicted", "True"), ("QuotaReserved", "False")]
    if not _is(known, "QuotaReserved", "False"):  # then it waits for admission checks, if for anything
        wanted.append(("Admitted", "False"))
    return [
        Said(known[kind].get("reason", ""), known[kind].get("message", ""))
        for kind, status in wanted
        if _is(known, kind, status)
    ]


def _is(known: dict[str, Body], kind: str, status: str) -> bool:
    return known.get(kind, {}).get("status") == status
