"""The state of a run and its reason, computed from the observed state: the only place where both are decided."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from finetune_operator.api import ConditionType, OperatorReason, Phase
from finetune_operator.api.labels import TRAINER_CONTAINER
from finetune_operator.api.objects import Body
from finetune_operator.observed.event import VOLUME_ERROR_REASONS
from finetune_operator.observed.job import is_job_suspended
from finetune_operator.observed.objects import ReasonMessage, find_true_condition, get_name, is_being_deleted
from finetune_operator.observed.pod import (
    CONTAINER_ERROR_REASONS,
    IMAGE_ERROR_REASONS,
    ContainerTermination,
    find_newest_pod,
    find_root_cause_pod,
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
from finetune_operator.status import deadlines
from finetune_operator.status.usage import MAX_INTERRUPTIONS, MAX_UNREPORTED
from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, ExitCode, Reason, Stage


class StateKind(Enum):
    """Kinds of states, each with its phase and its conditions."""

    WAITING = (Phase.PENDING, {ConditionType.RUNNING: False, ConditionType.RECONCILING: True})
    STARTING = (Phase.PENDING, {ConditionType.RUNNING: False})
    RUNNING = (Phase.RUNNING, {ConditionType.RUNNING: True})
    SUSPENDED = (Phase.SUSPENDED, {ConditionType.SUSPENDED: True, ConditionType.RUNNING: False})
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


_RESUME_HINT = "A new FineTuneJob with the same model, data, training and output resumes from the latest checkpoint"
_STAGE_TEXTS = {
    Stage.WAITING_FOR_OUTPUT: (
        f"is waiting for another run to release spec.output.uri (at most {OUTPUT_WAIT_SECONDS} s)"
    ),
    Stage.DOWNLOADING: "is downloading the model and the data",
    Stage.PREPARING: "is preparing the data",
    Stage.LOADING: "is loading the model",
    Stage.EVALUATING: "is evaluating the model",
    Stage.EXPORTING: "is exporting the result",
    Stage.UPLOADING: "is uploading the result",
}


def compute_state(observed: ObservedState, history: RunHistory) -> RunState:
    """Return the state of the run.

    In this order: a finished Job, a Job that is absent or has to be deleted, a Job that is about to fail, too many
    interruptions, a lost node, the last attempt.
    """
    job = observed.job
    last_pod = find_newest_pod(list_reporting_pods(observed.pods))
    if job and find_true_condition(job, "Complete"):
        return _build_complete_state(last_pod)
    if job and (condition := find_true_condition(job, "Failed")):
        job_failure = ReasonMessage(condition.get("reason", ""), condition.get("message", ""))
        return _build_failed_state(job_failure, observed)
    node_lost = _find_node_lost_state(observed, history)
    if job is None or is_being_deleted(job) or observed.run_policy.suspend:
        return node_lost or _build_inactive_state(observed, last_pod)
    is_running = last_pod is not None and is_trainer_running(last_pod)
    if not is_running and (condition := find_true_condition(job, "FailureTarget")):
        return node_lost or _build_failing_state(condition.get("message", ""), observed, history)
    if history.interruptions >= MAX_INTERRUPTIONS or history.unreported_interruptions >= MAX_UNREPORTED:
        return _build_no_progress_state(history, last_pod)
    state = node_lost or _build_active_state(job, last_pod, observed, history)
    return _find_startup_timeout_state(job, state, observed, history) or state


def _find_startup_timeout_state(
    job: Body, state: RunState, observed: ObservedState, history: RunHistory
) -> RunState | None:
    deadline = deadlines.compute_startup_deadline(observed.run_policy, job, history.last_attempt_time, observed.pods)
    if state.kind is not StateKind.STARTING or not deadlines.has_passed(deadline, history.now):
        return None
    seconds = observed.run_policy.startup_deadline_seconds
    message = f"No trainer started within spec.startupDeadlineSeconds ({seconds}). {state.message}"
    return RunState(StateKind.FAILED, OperatorReason.STARTUP_DEADLINE_EXCEEDED, message)


def _build_complete_state(last_pod: Body | None) -> RunState:
    outcome = get_termination(last_pod).outcome if last_pod else None
    # An outcome with another exit code is that of an earlier attempt.
    if outcome and outcome.reason.exit_code is ExitCode.OK:
        return RunState(StateKind.COMPLETE, outcome.reason, outcome.message)
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
    return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, text)


def _build_no_progress_state(history: RunHistory, last_pod: Body | None) -> RunState:
    if history.interruptions >= MAX_INTERRUPTIONS:
        end = f" {describe_termination(get_termination(last_pod))}" if last_pod and not is_alive(last_pod) else ""
        message = (
            f"{MAX_INTERRUPTIONS} consecutive attempts were interrupted before a new checkpoint was saved.{end} "
            "Lower spec.training.checkpoints.everySteps or use more stable nodes."
        )
    else:
        message = (
            f"The pods of {MAX_UNREPORTED} attempts disappeared before their nodes reported how they terminated, so it "
            "is unknown whether these attempts saved a checkpoint. Find out why nodes or pods disappear. "
            f"{_RESUME_HINT}, if there is one."
        )
    return RunState(StateKind.FAILED, OperatorReason.NO_PROGRESS, message)


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


def _build_inactive_state(observed: ObservedState, last_pod: Body | None) -> RunState:
    """Return the state of a run that is suspended, or whose Job does not exist or is being deleted."""
    if observed.run_policy.suspend:
        return _build_suspended_state(observed, last_pod)
    if observed.job is None:
        return _build_no_job_state(observed.blocked)
    message = "The Job was deleted. Another Job is created when it is gone."
    return RunState(StateKind.STARTING, OperatorReason.JOB_PENDING, message)


def _build_suspended_state(observed: ObservedState, last_pod: Body | None) -> RunState:
    pod_name = observed.terminating_pod or (get_name(last_pod) if last_pod and is_alive(last_pod) else None)
    if pod_name is None and observed.job is None:
        message = "All pods have terminated. Set spec.suspend to false to resume the run."
        return RunState(StateKind.SUSPENDED, OperatorReason.SUSPENDED, message)
    kind = StateKind.RUNNING if last_pod and is_trainer_running(last_pod) else StateKind.STARTING
    message = f"Pod {pod_name} is saving a checkpoint and terminating." if pod_name else "The Job is being deleted."
    return RunState(kind, OperatorReason.SUSPENDING, message)


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
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, message)
    if termination.exit_code == ExitCode.PERMANENT:  # The Job fails shortly after, because of its podFailurePolicy.
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, describe_termination(termination))
    if termination.exit_code is not None or not is_alive(last_pod):
        return _build_retrying_state(job, last_pod, observed)
    state = _build_pending_state(last_pod, observed.warning)
    previous_pod = find_newest_pod(pod for pod in list_rank_zero_pods(observed.pods) if pod is not last_pod)
    if previous_pod is None:
        return state
    reason = OperatorReason.RETRYING if state.reason is OperatorReason.POD_PENDING else state.reason
    message = f"{state.message} This is a retry. {describe_termination(get_termination(previous_pod))}"
    return RunState(state.kind, reason, message)


def _build_no_pod_state(job: Body, observed: ObservedState) -> RunState:
    if is_job_suspended(job):
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, _describe_queue(observed.queue_status))
    if observed.warning:
        return RunState(StateKind.STARTING, OperatorReason.JOB_REFUSED, _join_reason(observed.warning))
    message = "The Job exists. Its pod is about to be created."
    return RunState(StateKind.STARTING, OperatorReason.JOB_CREATED, message)


def _build_running_state(pod: Body, observed: ObservedState, history: RunHistory) -> RunState:
    policy = observed.run_policy
    stall_deadline = deadlines.compute_stall_deadline(
        policy, history.progress, history.last_attempt_time, observed.progress
    )
    if not deadlines.has_passed(stall_deadline, history.now):
        activity = _STAGE_TEXTS.get(history.stage, "is training") if history.stage else "is running"
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
        message = f"{_describe_queue(observed.queue_status)} {end}"
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, message)
    if observed.warning:
        return RunState(StateKind.STARTING, OperatorReason.JOB_REFUSED, f"{_join_reason(observed.warning)} {end}")
    return RunState(StateKind.STARTING, OperatorReason.RETRYING, f"The Job starts another attempt. {end}")


def _build_pending_state(pod: Body, warning: ReasonMessage | None) -> RunState:
    if message := get_unschedulable_message(pod):
        return RunState(StateKind.STARTING, OperatorReason.UNSCHEDULABLE, message)
    waiting = get_waiting_reason(pod) or ReasonMessage("", "")
    if waiting.reason in IMAGE_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.IMAGE_PULL_FAILED, _join_reason(waiting))
    if waiting.reason in CONTAINER_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, _join_reason(waiting))
    if warning and warning.reason in VOLUME_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, _join_reason(warning))
    warning_text = f" {_join_reason(warning)}" if warning else ""
    activity = "is filling or verifying the model cache" if is_filling_model_cache(pod) else "is starting"
    message = f"Pod {get_name(pod)} {activity}.{warning_text}"
    return RunState(StateKind.STARTING, OperatorReason.POD_PENDING, message)


def _describe_queue(queue_status: ReasonMessage | None) -> str:
    if queue_status:
        return f"Kueue holds the Job. {queue_status.reason}: {queue_status.message}"
    return "The Job is suspended. If Kueue manages it, it is resumed when quota is available."


def _join_reason(reason_message: ReasonMessage) -> str:
    return ": ".join(part for part in reason_message if part)


def describe_termination(termination: ContainerTermination) -> str:
    """Return sentences for users on how an attempt ended, and which checkpoint it has saved."""
    if termination.outcome:
        return f"The last attempt ended with {termination.outcome.reason}: {termination.outcome.message}"
    if termination.container != TRAINER_CONTAINER:
        end = _join_reason(termination.reason_message)
        return f"The init container {termination.container} was terminated ({end}), so that no trainer started."
    saved = f" A checkpoint of step {termination.checkpoint.step} is stored." if termination.checkpoint else ""
    if termination.reason_message.reason == "OOMKilled":
        return f"The last attempt exceeded its memory limit. Raise spec.compute.resources.limits.memory.{saved}"
    verb = "ended" if termination.exit_code is None else f"exited with code {termination.exit_code}"
    reason = _join_reason(termination.reason_message)
    return f"The last attempt {verb}{f' ({reason})' if reason else ''} and wrote no termination message.{saved}"
