"""What of a Job follows its FineTuneJob after it was created: never what Kueue edits. Pure."""

from __future__ import annotations

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.labels import JOB_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.observed.job import is_job_finishing
from finetune_operator.observed.objects import is_being_deleted, is_finished
from finetune_operator.observed.state import ObservedState
from finetune_operator.status import deadlines


def build_job_patch(observed: ObservedState, status: FineTuneJobStatus) -> Body:
    """A merge patch of the Job; empty if it is as it should be."""
    job = observed.job
    if job is None or is_finished(job) or is_being_deleted(job):
        return {}
    spec: Body = {}
    if job["spec"].get("backoffLimit") != observed.run_policy.backoff_limit:
        spec["backoffLimit"] = observed.run_policy.backoff_limit
    deadline = deadlines.compute_active_deadline_seconds(observed.run_policy, job, list(observed.pods), status)
    current_deadline = job["spec"].get("activeDeadlineSeconds")
    if deadline and abs(deadline - (current_deadline or 0)) > 1:  # whole seconds are rounded
        spec["activeDeadlineSeconds"] = deadline
    if deadline is None and current_deadline is not None and not is_job_finishing(job):
        spec["activeDeadlineSeconds"] = None  # the Job would go on counting while no trainer runs
    name = job["metadata"]["name"]
    metadata = {} if job["metadata"].get("labels", {}).get(JOB_LABEL) == name else {"labels": {JOB_LABEL: name}}
    return {key: patch for key, patch in (("spec", spec), ("metadata", metadata)) if patch}
