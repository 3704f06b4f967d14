"""What of a Job follows its FineTuneJob after it was created: never what Kueue edits. Pure."""

from __future__ import annotations

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body
from finetune_operator.observed.state import Seen
from finetune_operator.resources.job import JOB_LABEL
from finetune_operator.status import deadlines


def job_change(seen: Seen, status: FineTuneJobStatus) -> Body:
    """A merge patch of the Job; empty if it is as it should be."""
    job = seen.job
    if job is None or objects.has_ended(job) or objects.is_being_deleted(job):
        return {}
    spec: Body = {}
    if job["spec"].get("backoffLimit") != seen.wanted.backoff_limit:
        spec["backoffLimit"] = seen.wanted.backoff_limit
    deadline = deadlines.active_deadline(seen.wanted, job, list(seen.pods), status)
    current = job["spec"].get("activeDeadlineSeconds")
    if deadline and abs(deadline - (current or 0)) > 1:  # whole seconds are rounded
        spec["activeDeadlineSeconds"] = deadline
    if deadline is None and current is not None and not objects.is_ending(job):
        spec["activeDeadlineSeconds"] = None  # the Job would go on counting while no trainer runs
    name = job["metadata"]["name"]
    label = {} if job["metadata"].get("labels", {}).get(JOB_LABEL) == name else {"labels": {JOB_LABEL: name}}
    return {key: each for key, each in (("spec", spec), ("metadata", label)) if each}
