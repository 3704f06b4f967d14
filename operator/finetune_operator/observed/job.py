"""Readers of Jobs."""

from __future__ import annotations

import re

from finetune_operator.api.labels import INSTALLATION_ANNOTATION, SCRATCH_CLAIM_LABEL, SUSPEND_AT_STEP_ANNOTATION
from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import find_true_condition


def is_job_suspended(job: Body) -> bool:
    """Return whether the Job is suspended, by a queue or by a user."""
    return bool(job["spec"].get("suspend"))


def holds_scratch_claims(job: Body) -> bool:
    """Return whether each pod of the Job has a claim for scratch."""
    return SCRATCH_CLAIM_LABEL in job["metadata"].get("labels", {})


def get_job_started_at(job: Body) -> str | None:
    """Return when the Job was started or resumed, or None if it is suspended since its creation."""
    start_time: str | None = job.get("status", {}).get("startTime")
    return start_time


def get_suspend_at_step(job: Body) -> int | None:
    """Return the step at which the Job's trainers stop, or None if the annotation has none. People can change it."""
    text = str((job["metadata"].get("annotations") or {}).get(SUSPEND_AT_STEP_ANNOTATION, ""))
    return int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None


def is_job_complete(job: Body) -> bool:
    """Return whether all pods of the Job have succeeded."""
    return find_true_condition(job, "Complete") is not None


def is_job_finishing(job: Body) -> bool:
    """Return whether the Job starts no more pods and reports its end when the last of them has terminated."""
    return bool(find_true_condition(job, "FailureTarget") or find_true_condition(job, "SuccessCriteriaMet"))


def get_job_finished_at(job: Body) -> str | None:
    """Return when the Job completed or failed, or None if it is not finished."""
    condition = find_true_condition(job, "Complete") or find_true_condition(job, "Failed")
    return condition.get("lastTransitionTime") if condition else None


def get_installation_id(job: Body) -> str | None:
    """Return the id of the installation that created the Job, or None if it has no id."""
    installation_id: str | None = (job["metadata"].get("annotations") or {}).get(INSTALLATION_ANNOTATION)
    return installation_id
