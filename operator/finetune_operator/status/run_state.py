"""The state of a run and its reason, computed from the observed state: the only place where both are decided."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from finetune_operator.api import ConditionType, OperatorReason, Phase
from finetune_operator.api.labels import QUEUE_LABEL, SCRATCH_VOLUME
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.event import VOLUME_ERROR_REASONS
from finetune_operator.observed.job import get_suspend_at_step, is_job_complete, is_job_suspended
from finetune_operator.observed.objects import ReasonMessage, find_true_condition, get_name, is_being_deleted
from finetune_operator.observed.pod import (
    CONTAINER_ERROR_REASONS,
    IMAGE_ERROR_REASONS,
    ContainerTermination,
    find_newest_pod,
    find_root_cause_pod,
    find_storage_eviction,
    get_node_name,
    get_phase,
    get_termination,
    get_unschedulable_message,
    get_waiting_reason,
    is_alive,
    is_filling_model_cache,
    is_trainer_running,
    list_rank_zero_pods,
    list_reporting_pods,
)
from finetune_operator.observed.state import Blocked, ObservedState, RunHistory
from finetune_operator.observed.workload import is_queued
from finetune_operator.status import deadlines, startup_errors
from finetune_operator.status.startup_errors import StartupError
from finetune_operator.status.stops import Stop, StopCause, is_completing
from finetune_operator.status.texts import STAGE_TEXTS, describe_termination, join_reason
from finetune_operator.status.usage import get_max_unreported
from finetune_trainer.contract import ExitCode, Reason, StepResult


class StateKind(Enum):
    """Kinds of states, each with its phase and its conditions. The first condition is the headline."""

    WAITING = (Phase.PENDING, {ConditionType.RUNNING: False, ConditionType.RECONCILING: True})
    STARTING = (Phase.PENDING, {ConditionType.RUNNING: False})
    RUNNING = (Phase.RUNNING, {ConditionType.RUNNING: True})
    FINISHING = (Phase.RUNNING, {ConditionType.RUNNING: False})
    SUSPENDED = (Phase.SUSPENDED, {ConditionType.SUSPENDED: True, ConditionType.RUNNING: False})
    CANCELLED = (Phase.CANCELLED, {ConditionType.CANCELLED: True, ConditionType.RUNNING: False})
    COMPLETE = (Phase.COMPLETE, {ConditionType.COMPLETE: True, ConditionType.RUNNING: False})
    FAILED = (
        Phase.FAILED,
        {ConditionType.FAILED: True, ConditionType.RUNNING: False, ConditionType.STALLED: True},
    )


class RunState(NamedTuple):
    """The state of a run, with the reason and the message of its conditions."""

    kind: StateKind
    reason: Reason | OperatorReason
    message: str


PUBLISHED_REASONS = frozenset({Reason.COMPLETED, Reason.ALREADY_COMPLETE})
"""Reasons of an outcome with a complete result."""
_STOPPED_STATES: dict[StopCause, tuple[StateKind, Reason | OperatorReason]] = {
    StopCause.CANCEL: (StateKind.CANCELLED, OperatorReason.CANCELLED),
    StopCause.SUSPEND: (StateKind.SUSPENDED, OperatorReason.SUSPENDED),
    StopCause.BUDGET: (StateKind.SUSPENDED, OperatorReason.BUDGET_EXHAUSTED),
    StopCause.STEP: (StateKind.SUSPENDED, Reason.STEP_REACHED),
}
_STOPPING_TEXTS = {
    StopCause.CANCEL: "terminating, because spec.cancel is set",
    StopCause.SUSPEND: "saving a checkpoint and terminating",
    StopCause.BUDGET: "saving a checkpoint and terminating, because spec.budget is used up",
    StopCause.STEP: "saving a checkpoint and terminating, because spec.suspendAtStep is reached",
}
_RESUME_PATCH = '{"spec": {"suspend": false}}'
_RESUME_HINT = "A new FineTuneJob with the same model, data, training and output resumes from the latest checkpoint"
_STORAGE_REMEDIES = {
    SCRATCH_VOLUME: "Raise spec.compute.scratch.size",
    None: "Raise ephemeral-storage in spec.compute.resources.limits and spec.compute.scratch.size, or remove the limit",
}
"""What to do about a storage limit, by the name of the volume. None is a limit of the container or of the pod."""


def compute_state(observed: ObservedState, history: RunHistory, stop: Stop | None) -> RunState:
    """Return the state of the run.

    In this order: a Job that has ended with a result or an error, a run that must have no Job, a Job that is absent or
    has to be deleted, a Job that is about to fail, a full disk, too many interruptions, a lost node, the last attempt.
    """
    job = observed.job
    last_pod = find_newest_pod(list_reporting_pods(observed.pods))
    if job and (end := _find_end_state(job, last_pod, observed, history)):
        return end
    node_lost = _find_node_lost_state(observed, history)
    if stop and not (job and not is_job_complete(job) and is_completing(job, observed.pods)):
        return node_lost or _build_stopped_state(stop, observed, last_pod)
    if job is None or is_being_deleted(job) or is_job_complete(job):
        return node_lost or _build_inactive_state(observed)
    return _compute_job_state(job, last_pod, node_lost, observed, history)


def _compute_job_state(
    job: Body, last_pod: Body | None, node_lost: RunState | None, observed: ObservedState, history: RunHistory
) -> RunState:
    """Return the state of a run whose Job has not ended and continues."""
    is_running = last_pod is not None and is_trainer_running(last_pod)
    if not is_running and (condition := find_true_condition(job, "FailureTarget")):
        return node_lost or _build_failing_state(condition.get("message", ""), observed, history)
    if disk_full := _find_disk_full_state(observed):
        return disk_full
    if no_progress := _find_no_progress_state(observed.run_policy, history, last_pod):
        return no_progress
    state = node_lost or _build_active_state(job, last_pod, observed, history)
    return _find_startup_timeout_state(job, state, observed, history) or state


def _find_end_state(job: Body, last_pod: Body | None, observed: ObservedState, history: RunHistory) -> RunState | None:
    """Return the state of a run whose Job has ended. It continues if the Job ended at a step to stop at, and is
    complete if the Job failed after the result was published.
    """
    if is_job_complete(job):
        return None if _has_reached_step(job, last_pod, history.step_result) else _build_complete_state(job, last_pod)
    if condition := find_true_condition(job, "Failed"):
        job_failure = ReasonMessage(condition.get("reason", ""), condition.get("message", ""))
        return _find_published_state(observed.pods) or _build_failed_state(job_failure, observed)
    return None


def _has_reached_step(job: Body, last_pod: Body | None, result: StepResult | None) -> bool:
    """Return whether the trainer has reported that it has reached the step that it was started with.

    The report is in the status, because the Job exists for a while after its pod is deleted. A run that reports an
    earlier step would otherwise be started again and again.
    """
    outcome = get_termination(last_pod).outcome if last_pod else None
    if result is None or (outcome and outcome.reason in PUBLISHED_REASONS):
        return False
    requested = get_suspend_at_step(job)
    return requested is not None and result.step >= requested


def _find_startup_timeout_state(
    job: Body, state: RunState, observed: ObservedState, history: RunHistory
) -> RunState | None:
    last_attempt_time = history.last_attempt_creation_time or history.last_attempt_time
    deadline = deadlines.compute_startup_deadline(observed.run_policy, job, last_attempt_time, observed.pods)
    if state.kind is not StateKind.STARTING or not deadlines.has_passed(deadline, history.now):
        return None
    seconds = deadlines.get_startup_deadline_seconds(observed.run_policy, job)
    message = f"No trainer started within startupDeadlineSeconds ({seconds}). {state.message}"
    return RunState(StateKind.FAILED, OperatorReason.STARTUP_DEADLINE_EXCEEDED, message)


def _build_complete_state(job: Body, last_pod: Body | None) -> RunState:
    outcome = get_termination(last_pod).outcome if last_pod else None
    if outcome and outcome.reason in PUBLISHED_REASONS:  # others are of an earlier attempt
        return RunState(StateKind.COMPLETE, outcome.reason, outcome.message)
    if get_suspend_at_step(job) is not None or (outcome and outcome.reason is Reason.STEP_REACHED):
        message = (
            "The Job succeeded, but the pod's termination message is missing or invalid, so it is unknown whether the "
            f"run has a result or has stopped at spec.suspendAtStep. {_RESUME_HINT}, or finds the result."
        )
        return RunState(StateKind.FAILED, OperatorReason.OUTCOME_UNAVAILABLE, message)
    message = (
        "The Job succeeded, but the pod's termination message is missing or invalid. "
        "Check spec.output.uri for the result."
    )
    return RunState(StateKind.COMPLETE, OperatorReason.OUTCOME_UNAVAILABLE, message)


def _build_failed_state(job_failure: ReasonMessage, observed: ObservedState) -> RunState:
    if job_failure.reason == "DeadlineExceeded":
        seconds = observed.run_policy.active_deadline_seconds
        message = f"The run exceeded spec.activeDeadlineSeconds ({seconds}). {_RESUME_HINT}."
        return RunState(StateKind.FAILED, OperatorReason.DEADLINE_EXCEEDED, message)
    if disk_full := _find_disk_full_state(observed):
        return disk_full
    pod = find_root_cause_pod(observed.pods)
    termination = get_termination(pod) if pod else ContainerTermination(None, None, ReasonMessage("", ""))
    if termination.outcome and termination.outcome.reason.exit_code is not ExitCode.OK:
        return RunState(StateKind.FAILED, termination.outcome.reason, termination.outcome.message)
    if termination.reason_message.reason == "OOMKilled":
        return RunState(StateKind.FAILED, OperatorReason.OOM_KILLED, describe_termination(termination))
    is_backoff_limit = job_failure.reason == "BackoffLimitExceeded"
    reason = OperatorReason.BACKOFF_LIMIT_EXCEEDED if is_backoff_limit else OperatorReason.OUTCOME_UNAVAILABLE
    job_text = f"{job_failure.message}." if job_failure.message else ""
    message = f"{job_text} {describe_termination(termination) if pod else ''}".strip()
    return RunState(StateKind.FAILED, reason, message)


def _build_failing_state(job_message: str, observed: ObservedState, history: RunHistory) -> RunState:
    """Return the state of a Job that has failed but still has a pod: it gets its condition when the pod is gone."""
    pod = find_root_cause_pod(observed.pods)
    text = f"The Job is failing. {describe_termination(get_termination(pod)) if pod else job_message}"
    if history.last_attempt_time is None:
        return RunState(StateKind.STARTING, OperatorReason.JOB_PENDING, text)
    return RunState(StateKind.FINISHING, OperatorReason.FINISHING, text)


def _find_disk_full_state(observed: ObservedState) -> RunState | None:
    """Return the state of a run with a pod that was evicted because of a storage limit of its own.

    The next pod would be evicted as well. The Job replaces the pod in any case, because its trainer may have ended with
    an exit code that is not counted.
    """
    eviction = find_storage_eviction(observed.pods)
    if eviction is None:
        return None
    remedy = _STORAGE_REMEDIES.get(eviction.volume, f"Give volume {eviction.volume} of the pod more space")
    message = f"The pod was evicted: {eviction.message} {remedy}. {_RESUME_HINT}, if there is one."
    return RunState(StateKind.FAILED, Reason.DISK_FULL, message)


def _find_no_progress_state(policy: RunPolicy, history: RunHistory, last_pod: Body | None) -> RunState | None:
    """Return the state of a run with too many consecutive attempts that saved no new checkpoint."""
    if history.interruptions >= policy.max_interruptions:
        end = f" {describe_termination(get_termination(last_pod))}" if last_pod and not is_alive(last_pod) else ""
        message = (
            f"{policy.max_interruptions} consecutive attempts were interrupted before a new checkpoint was saved.{end} "
            "Lower spec.training.checkpoints.everySteps, use more stable nodes, or raise spec.maxInterruptions."
        )
        return RunState(StateKind.FAILED, OperatorReason.NO_PROGRESS, message)
    if history.unreported_interruptions >= get_max_unreported(policy):
        message = (
            f"The pods of {get_max_unreported(policy)} attempts disappeared before their nodes reported how they "
            "terminated, so it is unknown whether these attempts saved a checkpoint. Find out why nodes or pods "
            f"disappear. {_RESUME_HINT}, if there is one."
        )
        return RunState(StateKind.FAILED, OperatorReason.NO_PROGRESS, message)
    return None


def _find_node_lost_state(observed: ObservedState, history: RunHistory) -> RunState | None:
    """Return the state of a run with a pod that cannot terminate, so that the run can neither stop nor start again."""
    for pod in (*observed.orphaned_pods, *observed.pods):
        if deadlines.has_passed(deadlines.compute_node_lost_deadline(pod), history.now):
            message = (
                f"Pod {get_name(pod)} is stuck terminating because node {get_node_name(pod) or ''} is unreachable. "
                "The run is blocked until the node is back or its pods are removed. If the node is shut down "
                "permanently, taint it with node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the "
                "Node."
            )
            return RunState(StateKind.STARTING, OperatorReason.NODE_LOST, message)
    return None


def _build_inactive_state(observed: ObservedState) -> RunState:
    """Return the state of a run whose Job does not exist or is deleted before the next one is created."""
    if observed.job is None:
        return _build_no_job_state(observed.blocked)
    message = "The Job was deleted. Another Job is created when it is gone."
    return RunState(StateKind.STARTING, OperatorReason.JOB_PENDING, message)


def _build_stopped_state(stop: Stop, observed: ObservedState, last_pod: Body | None) -> RunState:
    """Return the state of a run that must have no Job, and may still have one with pods that terminate."""
    pod_name = observed.terminating_pod or (get_name(last_pod) if last_pod and is_alive(last_pod) else None)
    if pod_name is None and (observed.job is None or is_job_complete(observed.job)):
        return _find_published_state(observed.orphaned_pods) or RunState(*_STOPPED_STATES[stop.cause], stop.message)
    kind = StateKind.RUNNING if last_pod and is_trainer_running(last_pod) else StateKind.STARTING
    message = f"Pod {pod_name} is {_STOPPING_TEXTS[stop.cause]}." if pod_name else "The Job is being deleted."
    is_cancelled = stop.cause is StopCause.CANCEL
    return RunState(kind, OperatorReason.CANCELLING if is_cancelled else OperatorReason.SUSPENDING, message)


def _find_published_state(pods: Sequence[Body]) -> RunState | None:
    """Return the state of a run that published its result although its Job failed or was deleted."""
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    outcome = get_termination(last_pod).outcome if last_pod else None
    if outcome is None or outcome.reason not in PUBLISHED_REASONS:
        return None
    return RunState(StateKind.COMPLETE, outcome.reason, outcome.message)


def _build_no_job_state(blocked: Blocked | None) -> RunState:
    if blocked is None:
        return RunState(StateKind.WAITING, OperatorReason.JOB_PENDING, "The Job is about to be created.")
    return RunState(StateKind.FAILED if blocked.terminal else StateKind.WAITING, blocked.reason, blocked.message)


def _build_active_state(job: Body, last_pod: Body | None, observed: ObservedState, history: RunHistory) -> RunState:
    """Return the state of a run whose Job is active, according to its last attempt."""
    if last_pod is None:
        return _build_no_pod_state(job, observed)
    if is_trainer_running(last_pod):
        return _build_running_state(last_pod, observed, history)
    termination = get_termination(last_pod)
    # The phase of a pod changes shortly after its container has terminated.
    if termination.exit_code == 0 or get_phase(last_pod) == "Succeeded":
        message = f"Pod {get_name(last_pod)} has completed."
        return RunState(StateKind.FINISHING, OperatorReason.FINISHING, message)
    if termination.exit_code == ExitCode.PERMANENT:  # The Job fails shortly after, because of its podFailurePolicy.
        return RunState(StateKind.FINISHING, OperatorReason.FINISHING, describe_termination(termination))
    if termination.exit_code is not None or not is_alive(last_pod):
        return _build_retrying_state(job, last_pod, observed)
    state = _build_pending_state(last_pod, observed)
    previous_pod = find_newest_pod(pod for pod in list_rank_zero_pods(observed.pods) if pod is not last_pod)
    if previous_pod is None:
        return state
    reason = OperatorReason.RETRYING if state.reason is OperatorReason.POD_PENDING else state.reason
    message = f"{state.message} This is a retry. {describe_termination(get_termination(previous_pod))}"
    return RunState(state.kind, reason, message)


def _build_no_pod_state(job: Body, observed: ObservedState) -> RunState:
    if is_job_suspended(job):
        return _build_held_state(job, observed.queue_status)
    if observed.warning:
        return RunState(StateKind.STARTING, OperatorReason.JOB_REFUSED, join_reason(observed.warning))
    message = "The Job exists. Its pod is about to be created."
    return RunState(StateKind.STARTING, OperatorReason.JOB_CREATED, message)


def _build_running_state(pod: Body, observed: ObservedState, history: RunHistory) -> RunState:
    policy = observed.run_policy
    stall_deadline = deadlines.compute_stall_deadline(
        policy, history.progress, history.last_attempt_time, observed.progress
    )
    if not deadlines.has_passed(stall_deadline, history.now):
        activity = STAGE_TEXTS.get(history.stage, "is training") if history.stage else "is running"
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {get_name(pod)} {activity}.")
    since = history.progress.last_update_time if history.progress else ""
    message = (
        f"Pod {get_name(pod)} has reported no progress since {since}. After spec.training.stallSeconds "
        f"({policy.stall_seconds}) without progress, the trainer writes its stack traces to the log and exits, and the "
        "attempt is retried."
    )
    return RunState(StateKind.RUNNING, OperatorReason.PROGRESS_STALLED, message)


def _build_retrying_state(job: Body, last_pod: Body, observed: ObservedState) -> RunState:
    end = describe_termination(get_termination(find_root_cause_pod(observed.pods) or last_pod))
    if is_job_suspended(job):
        held = _build_held_state(job, observed.queue_status)
        return held._replace(message=f"{held.message} {end}")
    if observed.warning:
        return RunState(StateKind.STARTING, OperatorReason.JOB_REFUSED, f"{join_reason(observed.warning)} {end}")
    return RunState(StateKind.STARTING, OperatorReason.RETRYING, f"The Job starts another attempt. {end}")


def _build_pending_state(pod: Body, observed: ObservedState) -> RunState:
    if message := get_unschedulable_message(pod):
        gpu = startup_errors.find_missing_gpu(message, observed.run_policy.gpu_resource)
        return _build_startup_error_state(OperatorReason.UNSCHEDULABLE, message, observed, gpu)
    waiting = get_waiting_reason(pod) or ReasonMessage("", "")
    if waiting.reason in IMAGE_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.IMAGE_PULL_FAILED, join_reason(waiting))
    warning = observed.warning
    if waiting.reason in CONTAINER_ERROR_REASONS:
        return _build_startup_error_state(OperatorReason.CONTAINER_CONFIG_ERROR, join_reason(waiting), observed)
    if warning and warning.reason in VOLUME_ERROR_REASONS:
        return _build_startup_error_state(OperatorReason.CONTAINER_CONFIG_ERROR, join_reason(warning), observed)
    warning_text = f" {join_reason(warning)}" if warning else ""
    activity = "is filling or verifying the model cache" if is_filling_model_cache(pod) else "is starting"
    message = f"Pod {get_name(pod)} {activity}.{warning_text}"
    return RunState(StateKind.STARTING, OperatorReason.POD_PENDING, message)


def _build_startup_error_state(
    general_reason: OperatorReason, text: str, observed: ObservedState, error: StartupError | None = None
) -> RunState:
    """Return the state of a run whose pod cannot start, with a hint if the text of the component is known."""
    error = startup_errors.find_missing_object(text, observed.spec) or error
    if error is None:
        return RunState(StateKind.STARTING, general_reason, text)
    return RunState(StateKind.STARTING, error.reason, f"{error.hint} {text}")


def _build_held_state(job: Body, queue_status: ReasonMessage | None) -> RunState:
    """Return the state of a run whose Job is suspended, by Kueue if it has a queue, otherwise by a person."""
    if queue_status:
        message = f"Kueue holds the Job. {queue_status.reason}: {queue_status.message}"
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, message)
    if is_queued(job):
        message = "Kueue holds the Job until quota is available."
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, message)
    target = f"-n {job['metadata']['namespace']} {get_name(job)}"
    message = (
        f"The Job is suspended, and it has no label {QUEUE_LABEL}, so no queue resumes it. Resume it with: kubectl "
        f"patch job {target} --type=merge -p '{_RESUME_PATCH}'. To suspend a run, set spec.suspend of the FineTuneJob."
    )
    return RunState(StateKind.STARTING, OperatorReason.JOB_SUSPENDED, message)
