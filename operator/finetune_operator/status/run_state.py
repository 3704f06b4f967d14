"""Where a run is and why, by what is seen: the one table of states. Pure."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from finetune_operator.api import ConditionType, OperatorReason, Phase
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body, Ended, Said
from finetune_operator.observed.state import Obstacle, Past, Seen
from finetune_operator.status import deadlines
from finetune_operator.status.usage import MAX_INTERRUPTIONS, MAX_UNREPORTED
from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, ExitCode, Reason, Stage


class Kind(Enum):
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


class State(NamedTuple):
    """Where a run is and why."""

    kind: Kind
    reason: Reason | OperatorReason
    message: str


def state_of(seen: Seen, past: Past) -> State:
    """Where the run is."""
    job = seen.job
    last = objects.newest(objects.telling(seen.pods))
    if job and objects.condition(job, "Complete"):
        return _complete(last)
    if job and (failed := objects.condition(job, "Failed")):
        return _failed(Said(failed.get("reason", ""), failed.get("message", "")), objects.cause(seen.pods), seen)
    lost = _lost(seen, past)
    if job is None or objects.is_being_deleted(job) or seen.wanted.suspend:
        return lost or _leaving(seen, last)
    if (failing := objects.condition(job, "FailureTarget")) and not (last and objects.is_running(last)):
        return lost or _failing(failing.get("message", ""), objects.cause(seen.pods), past)
    if past.in_vain >= MAX_INTERRUPTIONS:
        return _no_progress(last)
    if past.unreported >= MAX_UNREPORTED:
        return State(Kind.FAILED, OperatorReason.NO_PROGRESS, _UNREPORTED)
    state = lost or _going_on(job, last, seen, past)
    due = deadlines.startup_due(seen.wanted, job, past.started, seen.pods)
    if state.kind is Kind.STARTING and deadlines.is_due(due, past.now):
        message = f"No trainer ran within startupDeadlineSeconds ({seen.wanted.startup_deadline}). {state.message}"
        return State(Kind.FAILED, OperatorReason.STARTUP_DEADLINE_EXCEEDED, message)
    return state


def _failing(message: str, last: Body | None, past: Past) -> State:
    """The Job has given up, and says so when the last pod is gone."""
    said = f"The Job ends. {describe(objects.ended(last)) if last else message}"
    if past.started is None:
        return State(Kind.STARTING, OperatorReason.JOB_PENDING, said)
    return State(Kind.RUNNING, OperatorReason.POD_RUNNING, said)


def _leaving(seen: Seen, last: Body | None) -> State:
    if seen.wanted.suspend:
        return _suspended(seen, last)
    if seen.job is None:
        return _without_job(seen.obstacle)
    return State(Kind.STARTING, OperatorReason.JOB_PENDING, "The Job was deleted; another follows when it is gone.")


def _lost(seen: Seen, past: Past) -> State | None:
    """A pod whose node does not let it go, so that the run neither stops nor starts again."""
    late = (pod for pod in (*seen.left, *seen.pods) if deadlines.is_due(deadlines.lost_due(pod), past.now))
    pod = next(late, None)
    if pod is None:
        return None
    name, node = pod["metadata"]["name"], pod["spec"].get("nodeName", "")
    message = (
        f"Pod {name} had to end and has not: node {node} does not answer. "
        "The run goes no further until the node is back or is known to be gone: if it is shut down for good, taint it "
        "with node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the Node."
    )
    return State(Kind.STARTING, OperatorReason.NODE_LOST, message)


def _going_on(job: Body, last: Body | None, seen: Seen, past: Past) -> State:
    if last is None:
        return _without_pod(job, seen)
    return _attempt(last, seen, past)


def _suspended(seen: Seen, last: Body | None) -> State:
    pod = seen.leaving or (last["metadata"]["name"] if last and objects.is_alive(last) else None)
    if pod is None and seen.job is None:
        return State(Kind.SUSPENDED, OperatorReason.SUSPENDED, "No pod is left; set spec.suspend to false to go on.")
    kind = Kind.RUNNING if last and objects.is_running(last) else Kind.STARTING
    message = f"Pod {pod} saves its work and leaves." if pod else "The Job is being deleted."
    return State(kind, OperatorReason.SUSPENDING, message)


def _without_job(obstacle: Obstacle | None) -> State:
    if obstacle is None:
        return State(Kind.WAITING, OperatorReason.JOB_PENDING, "The Job is about to be created.")
    return State(Kind.FAILED if obstacle.final else Kind.WAITING, obstacle.reason, obstacle.message)


def _complete(last: Body | None) -> State:
    outcome = objects.ended(last).outcome if last else None
    if outcome and outcome.reason.exit_code is ExitCode.OK:  # else it is the word of an earlier attempt
        return State(Kind.COMPLETE, outcome.reason, outcome.message)
    message = "The Job succeeded, but its pod's last word is gone; the result lies at spec.output.uri."
    return State(Kind.COMPLETE, OperatorReason.OUTCOME_UNAVAILABLE, message)


def _failed(job: Said, last: Body | None, seen: Seen) -> State:
    if job.reason == "DeadlineExceeded":
        message = f"activeDeadlineSeconds ({seen.wanted.active_deadline}) of running are used up."
        return State(Kind.FAILED, OperatorReason.DEADLINE_EXCEEDED, f"{message} {_GO_ON}")
    end = objects.ended(last) if last else Ended(None, None, Said("", ""))
    if end.outcome and end.outcome.reason.exit_code is not ExitCode.OK:
        return State(Kind.FAILED, end.outcome.reason, end.outcome.message)
    if end.said.reason == "OOMKilled":
        return State(Kind.FAILED, OperatorReason.OOM_KILLED, describe(end))
    known = OperatorReason.BACKOFF_LIMIT_EXCEEDED if job.reason == "BackoffLimitExceeded" else None
    message = " ".join(part for part in (f"{job.message}.", describe(end) if last else "") if part.strip("."))
    return State(Kind.FAILED, known or OperatorReason.OUTCOME_UNAVAILABLE, message)


_GO_ON = "A new FineTuneJob with the same model, data, training and output goes on from the newest checkpoint."


def _no_progress(last: Body | None) -> State:
    said = f" {describe(objects.ended(last))}" if last and not objects.is_alive(last) else ""
    message = f"{MAX_INTERRUPTIONS} attempts were interrupted before they had saved a newer checkpoint.{said}"
    return State(
        Kind.FAILED, OperatorReason.NO_PROGRESS, f"{message} Lower training.checkpoints.everySteps, or find them nodes."
    )


_UNREPORTED = (
    f"The pods of {MAX_UNREPORTED} attempts disappeared before their nodes had reported how they ended, so it is not "
    "known whether these attempts saved a checkpoint. Find out why nodes or pods disappear. A new FineTuneJob with the "
    "same model, data, training and output continues from the newest checkpoint, if there is one."
)


def _without_pod(job: Body, seen: Seen) -> State:
    if job["spec"].get("suspend"):
        return State(Kind.STARTING, OperatorReason.QUEUED, _queued(seen))
    if seen.warning:
        return State(Kind.STARTING, OperatorReason.JOB_REFUSED, f"{seen.warning.reason}: {seen.warning.message}")
    return State(Kind.STARTING, OperatorReason.JOB_CREATED, "The Job exists; its pod is about to be created.")


def _queued(seen: Seen) -> str:
    if seen.waits:
        return f"Kueue holds the Job. {seen.waits.reason}: {seen.waits.message}"
    return "The Job is suspended, by Kueue until there is quota for it."


def _attempt(last: Body, seen: Seen, past: Past) -> State:
    name = last["metadata"]["name"]
    if objects.is_running(last):
        if deadlines.is_due(deadlines.stall_due(seen.wanted, past.progress, past.started, seen.progress), past.now):
            return State(Kind.RUNNING, OperatorReason.PROGRESS_STALLED, _stalled(name, seen, past))
        return State(Kind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {name} {_doing(past)}.")
    status = objects.ended(last).exit_code  # the pod's phase follows a moment after its container's end
    if status == 0 or last.get("status", {}).get("phase") == "Succeeded":
        return State(Kind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {name} is done.")
    if status == ExitCode.PERMANENT:  # so the Job will end too, in a moment
        return State(Kind.RUNNING, OperatorReason.POD_RUNNING, describe(objects.ended(last)))
    if status is not None or not objects.is_alive(last):
        return _retrying(last, seen)
    state = _pending(last, seen.warning)
    before = objects.newest(pod for pod in objects.leaders(seen.pods) if pod is not last)
    if before is None:
        return state
    reason = OperatorReason.RETRYING if state.reason is OperatorReason.POD_PENDING else state.reason
    return State(state.kind, reason, f"{state.message} This is a retry. {describe(objects.ended(before))}")


_DOING = {
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


def _doing(past: Past) -> str:
    return _DOING.get(past.stage, "trains") if past.stage else "runs"


def _retrying(last: Body, seen: Seen) -> State:
    said = describe(objects.ended(objects.cause(seen.pods) or last))
    if seen.job and seen.job["spec"].get("suspend"):
        return State(Kind.STARTING, OperatorReason.QUEUED, f"{_queued(seen)} {said}")
    if seen.warning:
        return State(Kind.STARTING, OperatorReason.JOB_REFUSED, f"{seen.warning.reason}: {seen.warning.message} {said}")
    return State(Kind.STARTING, OperatorReason.RETRYING, f"Another attempt follows. {said}")


def _stalled(name: str, seen: Seen, past: Past) -> str:
    since = past.progress.last_update_time if past.progress else ""
    return (
        f"Pod {name} has not moved since {since}. After training.stallSeconds ({seen.wanted.stall}) without a step it "
        "writes where it hangs into its log, ends, and is tried again."
    )


def _pending(pod: Body, warning: Said | None) -> State:
    if message := objects.unschedulable(pod):
        return State(Kind.STARTING, OperatorReason.UNSCHEDULABLE, message)
    wait = objects.waiting(pod) or Said("", "")
    message = ": ".join(part for part in wait if part)
    if wait.reason in objects.IMAGE_REASONS:
        return State(Kind.STARTING, OperatorReason.IMAGE_PULL_FAILED, message)
    if wait.reason in objects.CONTAINER_REASONS:
        return State(Kind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, message)
    if warning and warning.reason in objects.VOLUME_REASONS:
        return State(Kind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, f"{warning.reason}: {warning.message}")
    said = f" {warning.reason}: {warning.message}" if warning else ""
    return State(Kind.STARTING, OperatorReason.POD_PENDING, f"Pod {pod['metadata']['name']} is starting.{said}")


def describe(end: Ended) -> str:
    """How the last attempt ended."""
    if end.outcome:
        return f"The last attempt ended with {end.outcome.reason}: {end.outcome.message}"
    saved = f" A checkpoint of step {end.checkpoint.step} is stored." if end.checkpoint else ""
    if end.said.reason == "OOMKilled":
        return f"The last attempt used more memory than its limit; raise spec.compute.resources.limits.memory.{saved}"
    said = ": ".join(part for part in end.said if part)
    code = "" if end.exit_code is None else f" with exit status {end.exit_code}"
    return f"The last attempt ended{code}{f' ({said})' if said else ''} and left no word of its own.{saved}"
