"""Decide what to create, patch and delete for one FineTuneJob. All functions are pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from pydantic import ValidationError

from finetune_operator.api import FineTuneJob, FineTuneJobStatus, OperatorReason
from finetune_operator.api.labels import JOB_LABEL
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import parse_run_policy
from finetune_operator.controller.finetunejob.request import ReconcileRequest
from finetune_operator.observed.job import holds_scratch_claims, is_job_complete, is_job_finishing
from finetune_operator.observed.objects import is_being_deleted, is_finished, parse_timestamp
from finetune_operator.observed.pod import (
    find_newest_pod,
    get_grace_period_end,
    is_alive,
    list_rank_zero_pods,
    list_superseded_pods,
)
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.policy.profiles import Profiles
from finetune_operator.policy.validation import describe_missing_profile, find_violations
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines, stops
from finetune_operator.status.job_status import is_terminal
from finetune_operator.status.usage import get_last_attempt

_MAX_ENDED_ATTEMPTS = 5
"""Attempts before the last one whose pods are kept for `kubectl logs`, unless they have claims."""
_NO_PROFILES = Profiles()
KILL_SECONDS = 1
"""Grace period of the pods of a cancelled run. With 0, the API server would forget a pod that still runs."""


class Changes(NamedTuple):
    """Planned writes of a reconcile. By default there are none."""

    create_job: Body | None = None
    """The Job to create. If it has several pods, their headless Service is created first."""
    blocked: Blocked | None = None
    """Why no Job can be created."""
    adopt_job: bool = False
    """Whether to adopt a Job of this FineTuneJob that only the API server has. If there is none, `blocked` applies."""
    ensure_service: bool = False
    """Whether the headless Service is created again if it is missing."""
    delete_job: Body | None = None
    """The Job to delete."""
    job_patch: Body | None = None
    """A merge patch of the observed Job."""
    delete_pods: Sequence[Body] = ()
    """Pods of earlier attempts, which are not needed any more."""
    kill_pods: Sequence[Body] = ()
    """Pods of a cancelled run, which get no time to save a checkpoint."""
    delete_finetunejob: bool = False


def plan(
    request: ReconcileRequest, observed: ObservedState, settings: Settings, profiles: Profiles = _NO_PROFILES
) -> Changes:
    """Return the writes that the Job needs, before the status is computed."""
    job = observed.job
    if is_terminal(request.previous_status):
        return Changes()
    stop = _find_stop(request, observed, request.previous_status)
    kill_pods = _list_pods_to_kill(observed, request) if stop and stop.cause is stops.StopCause.CANCEL else []
    if job is None:
        return Changes(kill_pods=kill_pods) if stop else _plan_creation(request, observed, settings, profiles)
    if stop or stops.has_other_stop_step(job, request.run_policy):
        return Changes(delete_job=job if _can_be_stopped(job, observed.pods) else None, kill_pods=kill_pods)
    return Changes(ensure_service=request.run_policy.nodes > 1 and _is_between_attempts(job, observed.pods))


def plan_follow_up(request: ReconcileRequest, observed: ObservedState, status: FineTuneJobStatus) -> Changes:
    """Return the writes that follow from the status, after it is stored.

    The Job of a finished run is deleted, and after its TTL the FineTuneJob is. So is a Job whose trainers have reached
    the step to stop at: its result is stored now. Otherwise the fields of the Job that follow the FineTuneJob are
    patched.
    """
    if not is_terminal(status):
        if observed.job and _has_reached_step(request, observed, observed.job, status):
            return Changes(delete_job=observed.job)
        return Changes(
            job_patch=build_job_patch(observed, status) or None, delete_pods=_list_unneeded_pods(observed, status)
        )
    ttl_expiry = deadlines.compute_ttl_expiry(request.run_policy, status)
    return Changes(
        delete_job=observed.job if observed.job and _is_unneeded_after_end(observed.job) else None,
        delete_finetunejob=deadlines.has_passed(ttl_expiry, request.now),
    )


def compute_requeue_after(
    request: ReconcileRequest, observed: ObservedState, status: FineTuneJobStatus
) -> float | None:
    """Return the seconds until the next deadline, or None if only events need another reconcile."""
    if is_terminal(status):
        ttl_expiry = deadlines.compute_ttl_expiry(request.run_policy, status)
        has_expired = deadlines.has_passed(ttl_expiry, request.now)
        return None if has_expired else deadlines.seconds_until(ttl_expiry, request.now)
    return deadlines.requeue_after(observed, status, request.now)


def build_job_patch(observed: ObservedState, status: FineTuneJobStatus) -> Body:
    """Return a merge patch for the fields of the Job that follow its FineTuneJob, empty if they are up to date.

    It contains no field that Kueue edits.
    """
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
        spec["activeDeadlineSeconds"] = None  # the Job controller would count time in which no trainer runs
    name = job["metadata"]["name"]
    metadata = {} if job["metadata"].get("labels", {}).get(JOB_LABEL) == name else {"labels": {JOB_LABEL: name}}
    return {key: patch for key, patch in (("spec", spec), ("metadata", metadata)) if patch}


def _plan_creation(
    request: ReconcileRequest, observed: ObservedState, settings: Settings, profiles: Profiles
) -> Changes:
    if observed.terminating_pod:
        message = f"Waiting for pod {observed.terminating_pod} of an earlier Job with the same name to end."
        return Changes(blocked=Blocked(OperatorReason.JOB_PENDING, message))
    try:
        finetunejob = FineTuneJob.model_validate({**request.body, "status": None})
        job = _build_job(finetunejob, settings, profiles)
        parse_run_policy(request.body)  # stricter than pydantic, which accepts "true" for a boolean
    except ValidationError as error:
        return Changes(blocked=Blocked(OperatorReason.INVALID_SPEC, _format_validation_error(error), terminal=True))
    except msgspec.ValidationError as error:
        return Changes(blocked=Blocked(OperatorReason.INVALID_SPEC, f"spec: {error}", terminal=True))
    if violations := find_violations(finetunejob, settings, profiles):
        # A Job that was created before the policy changed continues, also if the cache does not show it yet.
        return Changes(blocked=Blocked(OperatorReason.NOT_ALLOWED, " ".join(violations), terminal=True), adopt_job=True)
    if job is None:
        name, namespace = finetunejob.spec.compute.profile or "", finetunejob.metadata.namespace
        message = describe_missing_profile(name, namespace, profiles, settings.bounds)
        return Changes(blocked=Blocked(OperatorReason.JOB_PENDING, message), adopt_job=True)
    return Changes(create_job=job)


def _build_job(finetunejob: FineTuneJob, settings: Settings, profiles: Profiles) -> Body | None:
    """Return the Job, or None if its compute profile does not exist. Raises the errors of `build_job`."""
    try:
        chosen_profile = profiles.choose(finetunejob.spec.compute.profile, finetunejob.metadata.namespace)
    except KeyError:
        return None
    return build_job(finetunejob, settings, chosen_profile)


def _find_stop(request: ReconcileRequest, observed: ObservedState, status: FineTuneJobStatus) -> stops.Stop | None:
    return stops.find_stop(request.run_policy, status, (*observed.orphaned_pods, *observed.pods), request.now)


def _has_reached_step(request: ReconcileRequest, observed: ObservedState, job: Body, status: FineTuneJobStatus) -> bool:
    """Return whether the Job of an unfinished run has to be deleted, because of the result in its new status."""
    if is_being_deleted(job):
        return False
    if is_job_complete(job):  # If it had not stopped at a step, the run would be complete.
        return True
    is_stored = status.step_result != request.previous_status.step_result
    return is_stored and bool(_find_stop(request, observed, status)) and _can_be_stopped(job, observed.pods)


def _list_pods_to_kill(observed: ObservedState, request: ReconcileRequest) -> list[Body]:
    """Return the pods of a cancelled run that may run for longer than it takes to kill them.

    Those of a Job whose trainers have all succeeded are left alone. Those of a Job that is about to fail are not: it
    waits for them, as long as they save a checkpoint.
    """
    job, pods = observed.job, (*observed.orphaned_pods, *observed.pods)
    if job and stops.is_completing(job, observed.pods):
        return []
    limit = (parse_timestamp(request.now) or 0.0) + 2 * KILL_SECONDS
    return [pod for pod in pods if is_alive(pod) and (parse_timestamp(get_grace_period_end(pod)) or math.inf) > limit]


def _can_be_stopped(job: Body, pods: Sequence[Body]) -> bool:
    """Return whether deleting the Job stops something. A Job whose trainers have all succeeded completes by itself."""
    return _can_be_deleted(job) and not stops.is_completing(job, pods)


def _can_be_deleted(job: Body) -> bool:
    """Return whether the Job is neither finished nor about to report how it ended."""
    return not (is_finished(job) or is_job_finishing(job) or is_being_deleted(job))


def _is_unneeded_after_end(job: Body) -> bool:
    """Return whether the Job of a finished run is deleted: it still has pods, or claims that cost money.

    Other finished Jobs are kept for `kubectl logs`.
    """
    return _can_be_deleted(job) or (holds_scratch_claims(job) and is_finished(job) and not is_being_deleted(job))


def _list_unneeded_pods(observed: ObservedState, status: FineTuneJobStatus) -> list[Body]:
    """Return the pods of earlier attempts to delete, so that they and their claims do not pile up."""
    if observed.job is None:
        return []
    kept_attempts = 0 if holds_scratch_claims(observed.job) else _MAX_ENDED_ATTEMPTS
    return list_superseded_pods(observed.pods, get_last_attempt(status), kept_attempts)


def _is_between_attempts(job: Body, pods: Sequence[Body]) -> bool:
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    return last_pod is not None and not is_alive(last_pod) and _can_be_deleted(job)


def _format_validation_error(error: ValidationError) -> str:
    """Name the invalid fields, without their values."""
    return "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()[:10])
