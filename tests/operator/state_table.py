"""The table of states: what is seen, and the phase, conditions, reason and message that follow."""

from __future__ import annotations

import json
from typing import Any

from tests.operator.bodies import Build

from finetune_operator.api import ObjectMeta, OperatorReason
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_trainer.contract import OUTCOME_MAX_BYTES

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"
RUNNING = {"running": {"startedAt": NOW}}
WAITING = ("Pending", {"Running": "False", "Reconciling": "True"})
STARTING = ("Pending", {"Running": "False"})
RUNS = ("Running", {"Running": "True"})
SUSPENDED = ("Suspended", {"Suspended": "True", "Running": "False"})
COMPLETE = ("Complete", {"Complete": "True", "Running": "False"})
FAILED = ("Failed", {"Failed": "True", "Running": "False", "Stalled": "True"})
BACKOFF = {"Failed": ("BackoffLimitExceeded", "Job has reached the specified backoff limit")}
POLICY = {"Failed": ("PodFailurePolicy", "Container trainer failed with exit code 42")}
COMPLETED = {"Complete": ("CompletionsReached", "")}


def word(reason: str, message: str = "words", **more: Any) -> str:
    return json.dumps({"reason": reason, "message": message, **more})


def _worker(index: int, state: dict[str, Any], phase: str = "Failed") -> dict[str, Any]:
    """Another pod than the leader's."""
    pod = Build.pod(f"bot-{index}-x", state, phase)
    pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return pod


def _late(pod: dict[str, Any]) -> dict[str, Any]:
    """Its grace period is over."""
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-11-23T07:50:00Z"}}


def cases() -> dict[str, tuple[ObservedState, tuple[str, dict[str, str]], str, str]]:
    """Everything that may be seen → phase, conditions, reason, and a part of the message."""
    job, pod, ended = Build.job, Build.pod, Build.ended

    def attempt(
        code: int,
        text: str = "",
        why: str = "Error",
        conditions: dict[str, tuple[str, str]] | None = None,
        **status: Any,
    ) -> ObservedState:
        phase = "Succeeded" if code == 0 else "Failed"
        return ObservedState(job(conditions, **status), (pod(state=ended(code, text, why), phase=phase),))

    def waiting(reason: str, message: str = "words", warning: ReasonMessage | None = None) -> ObservedState:
        state = {"waiting": {"reason": reason, "message": message}}
        return ObservedState(job(active=1), (pod(state=state),), warning=warning)

    def obstacle(reason: OperatorReason, final: bool = False) -> ObservedState:
        return ObservedState(blocked=Blocked(reason, "words", final))

    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    first = pod(state=ended(75, word("StorageUnreachable", "no route")), phase="Failed")
    second = {"name": "bot-2", "created": LATER}
    deleted = job()
    deleted["metadata"]["deletionTimestamp"] = NOW
    lost = pod(state=RUNNING, phase="Running")
    lost["metadata"]["deletionTimestamp"] = "2026-11-23T07:58:00Z"
    leaving = pod(state=RUNNING, phase="Running")
    stop = RunPolicy(suspend=True)
    peer_lost = pod(state=ended(76, word("PeerLost", "a peer")), phase="Failed", **second)
    ending = {**job(active=1), "status": {"conditions": [{"type": "FailureTarget", "status": "True", "message": "m"}]}}
    late = RunPolicy(startup_deadline_seconds=60)
    started = {"startTime": "2026-11-23T07:59:00Z"}
    over = {"Failed": ("DeadlineExceeded", "Job was active longer than specified deadline")}
    huge = word("DataInvalid", "x" * OUTCOME_MAX_BYTES)
    gone = "OutcomeUnavailable"
    return {
        "nothing yet": (ObservedState(), WAITING, "JobPending", "about to be created"),
        "Job refused": (obstacle(OperatorReason.JOB_REFUSED), WAITING, "JobRefused", "words"),
        "earlier Job": (obstacle(OperatorReason.JOB_PENDING), WAITING, "JobPending", "words"),
        "foreign Job": (obstacle(OperatorReason.NAME_CONFLICT, True), FAILED, "NameConflict", "words"),
        "bad spec": (obstacle(OperatorReason.INVALID_SPEC, True), FAILED, "InvalidSpec", "words"),
        "bad spec but a Job": (
            ObservedState(job(), blocked=Blocked(OperatorReason.INVALID_SPEC, "", True)),
            STARTING,
            "JobCreated",
            "exists",
        ),
        "Job, no pod": (ObservedState(job()), STARTING, "JobCreated", "exists"),
        "Job queued": (ObservedState(job(suspend=True)), STARTING, "Queued", "suspended"),
        "pod refused": (
            ObservedState(job(), warning=ReasonMessage("FailedCreate", "exceeded quota")),
            STARTING,
            "JobRefused",
            "quota",
        ),
        "Job being deleted": (ObservedState(deleted), STARTING, "JobPending", "deleted"),
        "pod without status": (ObservedState(job(), (pod(),)), STARTING, "PodPending", "starting"),
        "no node": (ObservedState(job(), (pod(conditions=[unscheduled]),)), STARTING, "Unschedulable", "0/3 nodes"),
        "pulling": (waiting("ContainerCreating", ""), STARTING, "PodPending", "bot-1"),
        "image": (waiting("ImagePullBackOff"), STARTING, "ImagePullFailed", "words"),
        "image, first try": (waiting("ErrImagePull"), STARTING, "ImagePullFailed", "words"),
        "image's name": (waiting("InvalidImageName"), STARTING, "ImagePullFailed", "words"),
        "config": (waiting("CreateContainerConfigError"), STARTING, "ContainerConfigError", "words"),
        "runtime": (waiting("RunContainerError"), STARTING, "ContainerConfigError", "words"),
        "missing Secret": (
            waiting("ContainerCreating", warning=ReasonMessage("FailedMount", 'secret "k" not found')),
            STARTING,
            "ContainerConfigError",
            'secret "k" not found',
        ),
        "other warning": (
            waiting("ContainerCreating", warning=ReasonMessage("NetworkNotReady", "cni")),
            STARTING,
            "PodPending",
            "cni",
        ),
        "running": (ObservedState(job(active=1), (pod(state=RUNNING, phase="Running"),)), RUNS, "PodRunning", "bot-1"),
        "pod done, Job not": (attempt(0, word("Completed")), RUNS, "PodRunning", "done"),
        "container done, pod not": (
            ObservedState(job(active=1), (pod(state=ended(0, word("Completed")), phase="Running"),)),
            RUNS,
            "PodRunning",
            "done",
        ),
        "container failed, pod not": (
            ObservedState(job(active=1), (pod(state=ended(75, word("StorageUnreachable")), phase="Running"),)),
            STARTING,
            "Retrying",
            "StorageUnreachable",
        ),
        "in vain for good, Job not": (attempt(42, word("DataInvalid")), RUNS, "PodRunning", "DataInvalid: words"),
        "first attempt lost": (attempt(75, word("StorageUnreachable")), STARTING, "Retrying", "StorageUnreachable"),
        "next attempt refused": (
            ObservedState(
                job(), (pod(phase="Failed", reason="Evicted"),), warning=ReasonMessage("FailedCreate", "exceeded quota")
            ),
            STARTING,
            "JobRefused",
            "exceeded quota",
        ),
        "preempted": (attempt(143, word("Preempted")), STARTING, "Retrying", "Preempted"),
        "evicted": (
            ObservedState(job(), (pod(phase="Failed", reason="Evicted", message="low on memory"),)),
            STARTING,
            "Retrying",
            "Evicted: low on memory",
        ),
        "second attempt pending": (ObservedState(job(), (first, pod(**second))), STARTING, "Retrying", "no route"),
        "second attempt, no node": (
            ObservedState(job(), (first, pod(conditions=[unscheduled], **second))),
            STARTING,
            "Unschedulable",
            "no route",
        ),
        "second attempt runs": (
            ObservedState(job(), (first, pod(state=RUNNING, phase="Running", **second))),
            RUNS,
            "PodRunning",
            "bot-2",
        ),
        "complete": (attempt(0, word("Completed"), conditions=COMPLETED), COMPLETE, "Completed", "words"),
        "was complete": (attempt(0, word("AlreadyComplete"), conditions=COMPLETED), COMPLETE, "AlreadyComplete", ""),
        "complete, pod gone": (ObservedState(job(COMPLETED)), COMPLETE, gone, "spec.output.uri"),
        "complete, no word": (attempt(0, conditions=COMPLETED), COMPLETE, gone, "gone"),
        "complete, says failed": (attempt(0, word("DataInvalid"), conditions=COMPLETED), COMPLETE, gone, "gone"),
        "complete, deleted": (ObservedState({**deleted, **job(COMPLETED)}), COMPLETE, gone, "gone"),
        "complete, and the word is of the attempt before": (
            ObservedState(job(COMPLETED), (first,)),
            COMPLETE,
            gone,
            "pod's last word is gone",
        ),
        "permanent, of a worker whose pod is older than the leader's": (
            ObservedState(job(POLICY), (_worker(1, ended(42, word("OutOfMemory"))), peer_lost)),
            FAILED,
            "OutOfMemory",
            "words",
        ),
        "attempts used up, by a worker": (
            ObservedState(job(BACKOFF), (_worker(1, ended(137, reason="OOMKilled")), peer_lost)),
            FAILED,
            "OOMKilled",
            "memory",
        ),
        "a worker failed, another attempt follows": (
            ObservedState(job(), (_worker(1, ended(75, word("StorageUnreachable"))), peer_lost)),
            STARTING,
            "Retrying",
            "StorageUnreachable",
        ),
        "about to fail": (
            ObservedState(ending, (pod(state=ended(143, word("Preempted")), phase="Failed"),)),
            RUNS,
            "PodRunning",
            "The Job ends.",
        ),
        "about to fail, by a worker": (
            ObservedState(ending, (_worker(1, ended(137, reason="OOMKilled")), peer_lost)),
            RUNS,
            "PodRunning",
            "memory",
        ),
        "about to fail, though nothing ran": (
            ObservedState(ending, (pod(phase="Failed", reason="UnexpectedAdmissionError"),)),
            STARTING,
            "JobPending",
            "UnexpectedAdmissionError",
        ),
        "about to fail, but for a pod on a lost node": (
            ObservedState(ending, (_late(pod()),)),
            STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "permanent": (attempt(42, word("DataInvalid"), conditions=POLICY), FAILED, "DataInvalid", "words"),
        "permanent, no word": (attempt(42, conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, garbage": (attempt(42, '{"reason":', conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, huge": (attempt(42, huge, conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, unknown word": (attempt(42, word("Hacked"), conditions=POLICY), FAILED, gone, "exit status 42"),
        "failed, says completed": (attempt(42, word("Completed"), conditions=POLICY), FAILED, gone, "42"),
        "attempts used up": (
            attempt(75, word("StorageUnreachable"), conditions=BACKOFF),
            FAILED,
            "StorageUnreachable",
            "words",
        ),
        "attempts used up, no word": (attempt(1, conditions=BACKOFF), FAILED, "BackoffLimitExceeded", "exit status 1"),
        "attempts used up, memory": (
            attempt(137, why="OOMKilled", conditions=BACKOFF),
            FAILED,
            "OOMKilled",
            "limits.memory",
        ),
        "to stop, nothing there": (ObservedState(run_policy=stop), SUSPENDED, "Suspended", "spec.suspend"),
        "to stop, pod saves": (ObservedState(deleted, (leaving,), run_policy=stop), RUNS, "Suspending", "bot-1"),
        "to stop, pod pends": (ObservedState(deleted, (pod(),), run_policy=stop), STARTING, "Suspending", "bot-1"),
        "to stop, pod has left": (
            ObservedState(deleted, (pod(phase="Failed"),), run_policy=stop),
            STARTING,
            "Suspending",
            "being deleted",
        ),
        "to stop, pod of a Job that is gone": (
            ObservedState(terminating_pod="bot-7", run_policy=stop),
            STARTING,
            "Suspending",
            "bot-7",
        ),
        "to stop, but complete": (
            ObservedState(
                job(COMPLETED), (pod(state=ended(0, word("Completed")), phase="Succeeded"),), run_policy=stop
            ),
            COMPLETE,
            "Completed",
            "words",
        ),
        "too late to start": (
            ObservedState(job(**started), (pod(conditions=[unscheduled]),), run_policy=late),
            FAILED,
            "StartupDeadlineExceeded",
            "0/3",
        ),
        "too late, queued": (
            ObservedState(job(suspend=True, **started), run_policy=late),
            STARTING,
            "Queued",
            "suspended",
        ),
        "too late, but it runs": (
            ObservedState(job(**started), (leaving,), run_policy=late),
            RUNS,
            "PodRunning",
            "bot-1",
        ),
        "too late, but it ran": (
            ObservedState(job(**started), (first, pod(**second)), run_policy=late),
            STARTING,
            "Retrying",
            "no route",
        ),
        "ran too long": (
            attempt(143, word("Preempted"), conditions=over),
            FAILED,
            "DeadlineExceeded",
            "activeDeadlineSeconds",
        ),
        "node lost": (ObservedState(job(active=1), (lost,)), STARTING, "NodeLost", "out-of-service"),
        "node of another worker lost, which the next attempt waits for": (
            ObservedState(job(), (first, _late(_worker(1, RUNNING, "Running")))),
            STARTING,
            "NodeLost",
            "Pod bot-1-x",
        ),
        "node lost while the run is suspended": (
            ObservedState(deleted, (lost,), run_policy=stop),
            STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "node lost while the Job is deleted": (ObservedState(deleted, (lost,)), STARTING, "NodeLost", "out-of-service"),
        "node lost, and the Job is gone": (
            ObservedState(blocked=Blocked(OperatorReason.JOB_PENDING, "words"), orphaned_pods=(lost,)),
            STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "queued after an attempt": (
            ObservedState(job(suspend=True), (first,), queue_status=ReasonMessage("Preempted", "by another")),
            STARTING,
            "Queued",
            "by another",
        ),
        "failed, pod gone": (ObservedState(job(BACKOFF)), FAILED, "BackoffLimitExceeded", "backoff limit"),
    }
