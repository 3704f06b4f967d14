"""Where a run is and why, by what is seen: the one table of states. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from finetune_operator.api import ConditionType, OperatorReason, Phase
from finetune_operator.api.objects import Body
from finetune_operator.observed.event import VOLUME_ERROR_REASONS
from finetune_operator.observed.objects import ReasonMessage, find_true_condition, is_being_deleted
from finetune_operator.observed.pod import (
    CONTAINER_ERROR_REASONS,
    IMAGE_ERROR_REASONS,
    ContainerTermination,
    find_newest_pod,
    find_root_cause_pod,
    get_termination,
    get_unschedulable_message,
    get_waiting_reason,
    is_alive,
    is_trainer_running,
    list_rank_zero_pods,
    list_reporting_pods,
)
from finetune_operator.observed.state import Blocked, ObservedState, RunHistory
from finetune_operator.status import deadlines
from finetune_operator.status.usage import MAX_INTERRUPTIONS, MAX_UNREPORTED
from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, ExitCode, Reason, Stage


class StateKind(Enum):
    """What a state means for phase and conditions: the whole table."""

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
    """Where a run is and why."""

    kind: StateKind
    reason: Reason | OperatorReason
    message: str


def compute_state(observed: ObservedState, history: RunHistory) -> RunState:
    """Where the run is."""
    job = observed.job
    last_pod = find_newest_pod(list_reporting_pods(observed.pods))
    if job and find_true_condition(job, "Complete"):
        return _build_complete_state(last_pod)
    if job and (failed_condition := find_true_condition(job, "Failed")):
        return _build_failed_state(
            ReasonMessage(failed_condition.get("reason", ""), failed_condition.get("message", "")),
            find_root_cause_pod(observed.pods),
            observed,
        )
    node_lost = _find_node_lost_state(observed, history)
    if job is None or is_being_deleted(job) or observed.run_policy.suspend:
        return node_lost or _compute_inactive_state(observed, last_pod)
    if (failing_condition := find_true_condition(job, "FailureTarget")) and not (
        last_pod and is_trainer_running(last_pod)
    ):
        return node_lost or _build_failing_state(
            failing_condition.get("message", ""), find_root_cause_pod(observed.pods), history
        )
    if history.interruptions >= MAX_INTERRUPTIONS:
        return _build_no_progress_state(last_pod)
    if history.unreported_interruptions >= MAX_UNREPORTED:
        return RunState(StateKind.FAILED, OperatorReason.NO_PROGRESS, _UNREPORTED_MESSAGE)
    state = node_lost or _compute_active_state(job, last_pod, observed, history)
    startup_deadline = deadlines.compute_startup_deadline(
        observed.run_policy, job, history.last_attempt_time, observed.pods
    )
    if state.kind is StateKind.STARTING and deadlines.has_passed(startup_deadline, history.now):
        deadline = observed.run_policy.startup_deadline_seconds
        message = f"No trainer ran within startupDeadlineSeconds ({deadline}). {state.message}"
        return RunState(StateKind.FAILED, OperatorReason.STARTUP_DEADLINE_EXCEEDED, message)
    return state


def _build_failing_state(message: str, last_pod: Body | None, history: RunHistory) -> RunState:
    """The Job has given up, and says so when the last pod is gone."""
    text = f"The Job ends. {describe_termination(get_termination(last_pod)) if last_pod else message}"
    if history.last_attempt_time is None:
        return RunState(StateKind.STARTING, OperatorReason.JOB_PENDING, text)
    return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, text)


def _compute_inactive_state(observed: ObservedState, last_pod: Body | None) -> RunState:
    if observed.run_policy.suspend:
        return _compute_suspended_state(observed, last_pod)
    if observed.job is None:
        return _build_no_job_state(observed.blocked)
    return RunState(
        StateKind.STARTING, OperatorReason.JOB_PENDING, "The Job was deleted; another follows when it is gone."
    )


def _find_node_lost_state(observed: ObservedState, history: RunHistory) -> RunState | None:
    """A pod whose node does not let it go, so that the run neither stops nor starts again."""
    overdue_pods = (
        pod
        for pod in (*observed.orphaned_pods, *observed.pods)
        if deadlines.has_passed(deadlines.compute_node_lost_deadline(pod), history.now)
    )
    pod = next(overdue_pods, None)
    if pod is None:
        return None
    name, node = pod["metadata"]["name"], pod["spec"].get("nodeName", "")
    message = (
        f"Pod {name} had to end and has not: node {node} does not answer. "
        "The run goes no further until the node is back or is known to be gone: if it is shut down for good, taint it "
        "with node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the Node."
    )
    return RunState(StateKind.STARTING, OperatorReason.NODE_LOST, message)


def _compute_active_state(job: Body, last_pod: Body | None, observed: ObservedState, history: RunHistory) -> RunState:
    if last_pod is None:
        return _build_no_pod_state(job, observed)
    return _compute_attempt_state(last_pod, observed, history)


def _compute_suspended_state(observed: ObservedState, last_pod: Body | None) -> RunState:
    pod_name = observed.terminating_pod or (last_pod["metadata"]["name"] if last_pod and is_alive(last_pod) else None)
    if pod_name is None and observed.job is None:
        return RunState(
            StateKind.SUSPENDED, OperatorReason.SUSPENDED, "No pod is left; set spec.suspend to false to go on."
        )
    kind = StateKind.RUNNING if last_pod and is_trainer_running(last_pod) else StateKind.STARTING
    message = f"Pod {pod_name} saves its work and leaves." if pod_name else "The Job is being deleted."
    return RunState(kind, OperatorReason.SUSPENDING, message)


def _build_no_job_state(blocked: Blocked | None) -> RunState:
    if blocked is None:
        return RunState(StateKind.WAITING, OperatorReason.JOB_PENDING, "The Job is about to be created.")
    return RunState(StateKind.FAILED if blocked.terminal else StateKind.WAITING, blocked.reason, blocked.message)


def _build_complete_state(last_pod: Body | None) -> RunState:
    outcome = get_termination(last_pod).outcome if last_pod else None
    if outcome and outcome.reason.exit_code is ExitCode.OK:  # else it is the word of an earlier attempt
        return RunState(StateKind.COMPLETE, outcome.reason, outcome.message)
    message = "The Job succeeded, but its pod's last word is gone; the result lies at spec.output.uri."
    return RunState(StateKind.COMPLETE, OperatorReason.OUTCOME_UNAVAILABLE, message)


def _build_failed_state(job_failure: ReasonMessage, last_pod: Body | None, observed: ObservedState) -> RunState:
    if job_failure.reason == "DeadlineExceeded":
        message = f"activeDeadlineSeconds ({observed.run_policy.active_deadline_seconds}) of running are used up."
        return RunState(StateKind.FAILED, OperatorReason.DEADLINE_EXCEEDED, f"{message} {_RESUME_HINT}")
    termination = get_termination(last_pod) if last_pod else ContainerTermination(None, None, ReasonMessage("", ""))
    if termination.outcome and termination.outcome.reason.exit_code is not ExitCode.OK:
        return RunState(StateKind.FAILED, termination.outcome.reason, termination.outcome.message)
    if termination.reason_message.reason == "OOMKilled":
        return RunState(StateKind.FAILED, OperatorReason.OOM_KILLED, describe_termination(termination))
    job_reason = OperatorReason.BACKOFF_LIMIT_EXCEEDED if job_failure.reason == "BackoffLimitExceeded" else None
    message = " ".join(
        part
        for part in (f"{job_failure.message}.", describe_termination(termination) if last_pod else "")
        if part.strip(".")
    )
    return RunState(StateKind.FAILED, job_reason or OperatorReason.OUTCOME_UNAVAILABLE, message)


_RESUME_HINT = "A new FineTuneJob with the same model, data, training and output goes on from the newest checkpoint."


def _build_no_progress_state(last_pod: Body | None) -> RunState:
    end_text = f" {describe_termination(get_termination(last_pod))}" if last_pod and not is_alive(last_pod) else ""
    message = f"{MAX_INTERRUPTIONS} attempts were interrupted before they had saved a newer checkpoint.{end_text}"
    return RunState(
        StateKind.FAILED,
        OperatorReason.NO_PROGRESS,
        f"{message} Lower training.checkpoints.everySteps, or find them nodes.",
    )


_UNREPORTED_MESSAGE = (
    f"The pods of {MAX_UNREPORTED} attempts disappeared before their nodes had reported how they ended, so it is not "
    "known whether these attempts saved a checkpoint. Find out why nodes or pods disappear. A new FineTuneJob with the "
    "same model, data, training and output continues from the newest checkpoint, if there is one."
)


def _build_no_pod_state(job: Body, observed: ObservedState) -> RunState:
    if job["spec"].get("suspend"):
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, _describe_queue(observed))
    if observed.warning:
        return RunState(
            StateKind.STARTING, OperatorReason.JOB_REFUSED, f"{observed.warning.reason}: {observed.warning.message}"
        )
    return RunState(StateKind.STARTING, OperatorReason.JOB_CREATED, "The Job exists; its pod is about to be created.")


def _describe_queue(observed: ObservedState) -> str:
    if observed.queue_status:
        return f"Kueue holds the Job. {observed.queue_status.reason}: {observed.queue_status.message}"
    return "The Job is suspended, by Kueue until there is quota for it."


def _compute_attempt_state(last_pod: Body, observed: ObservedState, history: RunHistory) -> RunState:
    name = last_pod["metadata"]["name"]
    if is_trainer_running(last_pod):
        if deadlines.has_passed(
            deadlines.compute_stall_deadline(
                observed.run_policy, history.progress, history.last_attempt_time, observed.progress
            ),
            history.now,
        ):
            return RunState(
                StateKind.RUNNING, OperatorReason.PROGRESS_STALLED, _describe_stall(name, observed, history)
            )
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {name} {_describe_stage(history)}.")
    exit_code = get_termination(last_pod).exit_code  # the pod's phase follows a moment after its container's end
    if exit_code == 0 or last_pod.get("status", {}).get("phase") == "Succeeded":
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {name} is done.")
    if exit_code == ExitCode.PERMANENT:  # so the Job will end too, in a moment
        return RunState(StateKind.RUNNING, OperatorReason.POD_RUNNING, describe_termination(get_termination(last_pod)))
    if exit_code is not None or not is_alive(last_pod):
        return _build_retrying_state(last_pod, observed)
    state = _build_pending_state(last_pod, observed.warning)
    previous_pod = find_newest_pod(pod for pod in list_rank_zero_pods(observed.pods) if pod is not last_pod)
    if previous_pod is None:
        return state
    reason = OperatorReason.RETRYING if state.reason is OperatorReason.POD_PENDING else state.reason
    return RunState(
        state.kind,
        reason,
        f"{state.message} This is a retry. {describe_termination(get_termination(previous_pod))}",
    )


_STAGE_TEXTS = {
    Stage.WAITING_FOR_OUTPUT: (
        f"waits until another run has released spec.output.uri (at most {OUTPUT_WAIT_SECONDS} s)"
    ),
    Stage.DOWNLOADING: "downloads model and data",
    Stage.PREPARING: "prepares the data",
    Stage.LOADING: "loads the model",
    Stage.EVALUATING: "evaluates the model",
    Stage.EXPORTING: "exports the result",
    Stage.UPLOADING: "uploads the result",
}


def _describe_stage(history: RunHistory) -> str:
    return _STAGE_TEXTS.get(history.stage, "trains") if history.stage else "runs"


def _build_retrying_state(last_pod: Body, observed: ObservedState) -> RunState:
    end_text = describe_termination(get_termination(find_root_cause_pod(observed.pods) or last_pod))
    if observed.job and observed.job["spec"].get("suspend"):
        return RunState(StateKind.STARTING, OperatorReason.QUEUED, f"{_describe_queue(observed)} {end_text}")
    if observed.warning:
        return RunState(
            StateKind.STARTING,
            OperatorReason.JOB_REFUSED,
            f"{observed.warning.reason}: {observed.warning.message} {end_text}",
        )
    return RunState(StateKind.STARTING, OperatorReason.RETRYING, f"Another attempt follows. {end_text}")


def _describe_stall(name: str, observed: ObservedState, history: RunHistory) -> str:
    since = history.progress.last_update_time if history.progress else ""
    return (
        f"Pod {name} has not moved since {since}. "
        f"After training.stallSeconds ({observed.run_policy.stall_seconds}) without a step it "
        "writes where it hangs into its log, ends, and is tried again."
    )


def _build_pending_state(pod: Body, warning: ReasonMessage | None) -> RunState:
    if message := get_unschedulable_message(pod):
        return RunState(StateKind.STARTING, OperatorReason.UNSCHEDULABLE, message)
    waiting = get_waiting_reason(pod) or ReasonMessage("", "")
    message = ": ".join(part for part in waiting if part)
    if waiting.reason in IMAGE_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.IMAGE_PULL_FAILED, message)
    if waiting.reason in CONTAINER_ERROR_REASONS:
        return RunState(StateKind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, message)
    if warning and warning.reason in VOLUME_ERROR_REASONS:
        return RunState(
            StateKind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, f"{warning.reason}: {warning.message}"
        )
    warning_text = f" {warning.reason}: {warning.message}" if warning else ""
    return RunState(
        StateKind.STARTING, OperatorReason.POD_PENDING, f"Pod {pod['metadata']['name']} is starting.{warning_text}"
    )


def describe_termination(termination: ContainerTermination) -> str:
    """How the last attempt ended."""
    if termination.outcome:
        return f"The last attempt ended with {termination.outcome.reason}: {termination.outcome.message}"
    saved = f" A checkpoint of step {termination.checkpoint.step} is stored." if termination.checkpoint else ""
    if termination.reason_message.reason == "OOMKilled":
        return f"The last attempt used more memory than its limit; raise spec.compute.resources.limits.memory.{saved}"
    reason = ": ".join(part for part in termination.reason_message if part)
    code = "" if termination.exit_code is None else f" with exit status {termination.exit_code}"
    return f"The last attempt ended{code}{f' ({reason})' if reason else ''} and left no word of its own.{saved}"
