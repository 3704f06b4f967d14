"""The table of states: an observed state, and the phase, conditions, reason and message that follow from it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.support.operator.builders import Builders

from finetune_operator.api import ObjectMeta, OperatorReason
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import ReasonMessage
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_trainer.contract import OUTCOME_MAX_BYTES

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"
RUNNING_STATE = {"running": {"startedAt": NOW}}
PHASE_WAITING = ("Pending", {"Running": "False", "Reconciling": "True"})
PHASE_STARTING = ("Pending", {"Running": "False"})
PHASE_RUNNING = ("Running", {"Running": "True"})
PHASE_FINISHING = ("Running", {"Running": "False"})
PHASE_CANCELLED = ("Cancelled", {"Cancelled": "True", "Running": "False"})
PHASE_SUSPENDED = ("Suspended", {"Suspended": "True", "Running": "False"})
PHASE_COMPLETE = ("Complete", {"Complete": "True", "Running": "False"})
PHASE_FAILED = ("Failed", {"Failed": "True", "Running": "False", "Stalled": "True"})
JOB_BACKOFF_LIMIT_EXCEEDED = {"Failed": ("BackoffLimitExceeded", "Job has reached the specified backoff limit")}
JOB_POD_FAILURE_POLICY = {"Failed": ("PodFailurePolicy", "Container trainer failed with exit code 42")}
JOB_COMPLETE = {"Complete": ("CompletionsReached", "")}


class StateCase(NamedTuple):
    """A row of the table."""

    observed: ObservedState
    phase_and_conditions: tuple[str, dict[str, str]]
    reason: str
    message_part: str


def build_termination_message(reason: str, message: str = "words", **fields: Any) -> str:
    return json.dumps({"reason": reason, "message": message, **fields})


def _worker_pod(index: int, state: dict[str, Any], phase: str = "Failed") -> dict[str, Any]:
    """Return a pod with another index than 0."""
    pod = Builders.pod(f"bot-{index}-x", state, phase)
    pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return pod


def _expire_grace_period(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the pod after its grace period."""
    return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": "2026-11-23T07:50:00Z"}}


def build_step_job(step: int = 100, conditions: dict[str, tuple[str, str]] | None = None) -> dict[str, Any]:
    """Return a Job whose trainers stop at this step."""
    job = Builders.job(conditions)
    job["metadata"]["annotations"] = {"finetune.dev/suspend-at-step": str(step)}
    return job


def build_step_reached_pod(step: int = 100) -> dict[str, Any]:
    """Return a pod whose trainer has stopped at this step."""
    message = build_termination_message(
        "StepReached", stepResult={"step": step, "evalLoss": 1.25, "evalLossLow": 1.2, "evalLossHigh": 1.3}
    )
    return Builders.pod(state=Builders.terminated(0, message), phase="Succeeded")


def _build_cancel_cases(deleted_job: dict[str, Any], running_pod: dict[str, Any]) -> dict[str, StateCase]:
    """Return the states of runs that are cancelled."""
    cancel = RunPolicy(cancel=True)
    return {
        "cancelled before a Job exists": StateCase(
            ObservedState(run_policy=cancel), PHASE_CANCELLED, "Cancelled", "create a new FineTuneJob"
        ),
        "cancelling, pod running": StateCase(
            ObservedState(deleted_job, (running_pod,), run_policy=cancel), PHASE_RUNNING, "Cancelling", "bot-1"
        ),
        "cancelling, pod of a deleted Job": StateCase(
            ObservedState(terminating_pod="bot-7", run_policy=cancel), PHASE_STARTING, "Cancelling", "bot-7"
        ),
        "cancelled, result published meanwhile": StateCase(
            ObservedState(orphaned_pods=(_build_published_pod(),), run_policy=cancel),
            PHASE_COMPLETE,
            "Completed",
            "words",
        ),
        "cancelled after the run stopped at a step": StateCase(
            ObservedState(build_step_job(100, JOB_COMPLETE), (build_step_reached_pod(),), run_policy=cancel),
            PHASE_CANCELLED,
            "Cancelled",
            "spec.cancel",
        ),
    }


def _build_published_pod() -> dict[str, Any]:
    """Return a pod whose trainer has published the result."""
    state = Builders.terminated(0, build_termination_message("Completed"))
    return Builders.pod(state=state, phase="Succeeded")


def _build_budget_cases(deleted_job: dict[str, Any]) -> dict[str, StateCase]:
    """Return the states of runs that have used their budget."""
    budget, an_hour_ago = RunPolicy(budget_active_seconds=60), "2026-11-23T07:00:00Z"
    used_pod = Builders.pod(state={"running": {"startedAt": an_hour_ago}}, phase="Running")
    used_state = Builders.terminated(143, build_termination_message("Preempted"))
    used_state["terminated"]["startedAt"] = an_hour_ago
    ended_pod = Builders.pod(state=used_state, phase="Failed")
    return {
        "budget used up, pod saving": StateCase(
            ObservedState(deleted_job, (used_pod,), run_policy=budget), PHASE_RUNNING, "Suspending", "spec.budget"
        ),
        "budget used up": StateCase(
            ObservedState(orphaned_pods=(ended_pod,), run_policy=budget),
            PHASE_SUSPENDED,
            "BudgetExhausted",
            "run for 3600 seconds, and spec.budget.activeSeconds is 60",
        ),
        "budget used up by a run that has succeeded": StateCase(
            ObservedState(
                Builders.job(), (_build_published_pod(),), run_policy=budget._replace(budget_active_seconds=0)
            ),
            PHASE_FINISHING,
            "Finishing",
            "has completed",
        ),
    }


def _build_step_cases() -> dict[str, StateCase]:
    """Return the states of runs that stop at a step."""
    at_step, stopped_job = RunPolicy(suspend_at_step=100), build_step_job(100, JOB_COMPLETE)
    step_pod, unknown = build_step_reached_pod(), (PHASE_FAILED, "OutcomeUnavailable")
    return {
        "stopped at a step": StateCase(
            ObservedState(stopped_job, (step_pod,), run_policy=at_step),
            PHASE_SUSPENDED,
            "StepReached",
            "step 100: the validation loss is 1.25 (95 % interval 1.2 to 1.3)",
        ),
        "stopped at a step, Job not complete yet": StateCase(
            ObservedState(build_step_job(), (step_pod,), run_policy=at_step),
            PHASE_FINISHING,
            "Finishing",
            "has completed",
        ),
        "stopped at a step, the next is set": StateCase(
            ObservedState(stopped_job, (step_pod,), run_policy=RunPolicy(suspend_at_step=200)),
            PHASE_STARTING,
            "JobPending",
            "Another Job is created",
        ),
        "stopped at an earlier step than requested": StateCase(
            ObservedState(stopped_job, (build_step_reached_pod(99),), run_policy=at_step),
            *unknown,
            "spec.suspendAtStep",
        ),
        "stopped at a step without a request": StateCase(
            ObservedState(Builders.job(JOB_COMPLETE), (step_pod,)), *unknown, "missing"
        ),
        "Job with a step to stop at, outcome unknown": StateCase(
            ObservedState(stopped_job, run_policy=at_step), *unknown, "is unknown"
        ),
        "Job with a step to stop at, completed before it": StateCase(
            ObservedState(stopped_job, (_build_published_pod(),), run_policy=at_step),
            PHASE_COMPLETE,
            "Completed",
            "words",
        ),
    }


def build_state_cases() -> dict[str, StateCase]:
    """Return all states by name."""
    job, pod, terminated = Builders.job, Builders.pod, Builders.terminated

    def finished_attempt(
        exit_code: int,
        termination_message: str = "",
        termination_reason: str = "Error",
        conditions: dict[str, tuple[str, str]] | None = None,
        **status: Any,
    ) -> ObservedState:
        phase = "Succeeded" if exit_code == 0 else "Failed"
        return ObservedState(
            job(conditions, **status),
            (pod(state=terminated(exit_code, termination_message, termination_reason), phase=phase),),
        )

    def waiting_container(reason: str, message: str = "words", warning: ReasonMessage | None = None) -> ObservedState:
        state = {"waiting": {"reason": reason, "message": message}}
        return ObservedState(job(active=1), (pod(state=state),), warning=warning)

    def cache_container(
        state: dict[str, Any], phase: str = "Pending", conditions: dict[str, tuple[str, str]] | None = None
    ) -> ObservedState:
        statuses = [{"name": "istio-init", "state": {}}, {"name": "model-cache", "state": state}]
        waiting = {"waiting": {"reason": "PodInitializing"}}
        return ObservedState(job(conditions), (pod(state=waiting, phase=phase, initContainerStatuses=statuses),))

    def blocked(reason: OperatorReason, terminal: bool = False) -> ObservedState:
        return ObservedState(blocked=Blocked(reason, "words", terminal))

    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    first_pod = pod(state=terminated(75, build_termination_message("StorageUnreachable", "no route")), phase="Failed")
    second_pod_fields = {"name": "bot-2", "created": LATER}
    queued_job = job(suspend=True)
    queued_job["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
    deleted_job = job()
    deleted_job["metadata"]["deletionTimestamp"] = NOW
    lost_pod = pod(state=RUNNING_STATE, phase="Running")
    lost_pod["metadata"]["deletionTimestamp"] = "2026-11-23T07:58:00Z"
    running_pod = pod(state=RUNNING_STATE, phase="Running")
    suspend_policy = RunPolicy(suspend=True)
    peer_lost_pod = pod(
        state=terminated(76, build_termination_message("PeerLost", "a peer")), phase="Failed", **second_pod_fields
    )
    failing_job = {
        **job(active=1),
        "status": {"conditions": [{"type": "FailureTarget", "status": "True", "message": "m"}]},
    }
    startup_policy = RunPolicy(startup_deadline_seconds=60)
    job_started = {"startTime": "2026-11-23T07:59:00Z"}
    job_deadline_exceeded = {"Failed": ("DeadlineExceeded", "Job was active longer than specified deadline")}
    oversized_message = build_termination_message("DataInvalid", "x" * OUTCOME_MAX_BYTES)
    outcome_unavailable = "OutcomeUnavailable"
    return {
        "no Job yet": StateCase(ObservedState(), PHASE_WAITING, "JobPending", "about to be created"),
        "Job rejected": StateCase(blocked(OperatorReason.JOB_REFUSED), PHASE_WAITING, "JobRefused", "words"),
        "Job of an earlier FineTuneJob": StateCase(
            blocked(OperatorReason.JOB_PENDING), PHASE_WAITING, "JobPending", "words"
        ),
        "name conflict": StateCase(blocked(OperatorReason.NAME_CONFLICT, True), PHASE_FAILED, "NameConflict", "words"),
        "invalid spec": StateCase(blocked(OperatorReason.INVALID_SPEC, True), PHASE_FAILED, "InvalidSpec", "words"),
        "invalid spec, Job exists": StateCase(
            ObservedState(job(), blocked=Blocked(OperatorReason.INVALID_SPEC, "", True)),
            PHASE_STARTING,
            "JobCreated",
            "exists",
        ),
        "Job without pod": StateCase(ObservedState(job()), PHASE_STARTING, "JobCreated", "exists"),
        "Job queued": StateCase(ObservedState(queued_job), PHASE_STARTING, "Queued", "Kueue holds the Job"),
        "Job suspended by a person": StateCase(
            ObservedState(job(suspend=True)),
            PHASE_STARTING,
            "JobSuspended",
            """Resume it with: kubectl patch job -n team bot --type=merge -p '{"spec": {"suspend": false}}'""",
        ),
        "Job suspended by a person after an attempt": StateCase(
            ObservedState(job(suspend=True), (first_pod,)), PHASE_STARTING, "JobSuspended", "no route"
        ),
        "pod rejected": StateCase(
            ObservedState(job(), warning=ReasonMessage("FailedCreate", "exceeded quota")),
            PHASE_STARTING,
            "JobRefused",
            "quota",
        ),
        "Job being deleted": StateCase(ObservedState(deleted_job), PHASE_STARTING, "JobPending", "deleted"),
        "pod without status": StateCase(ObservedState(job(), (pod(),)), PHASE_STARTING, "PodPending", "starting"),
        "unschedulable": StateCase(
            ObservedState(job(), (pod(conditions=[unscheduled]),)),
            PHASE_STARTING,
            "Unschedulable",
            "0/3 nodes",
        ),
        "image is pulled": StateCase(waiting_container("ContainerCreating", ""), PHASE_STARTING, "PodPending", "bot-1"),
        "image pull backoff": StateCase(
            waiting_container("ImagePullBackOff"), PHASE_STARTING, "ImagePullFailed", "words"
        ),
        "image pull error": StateCase(waiting_container("ErrImagePull"), PHASE_STARTING, "ImagePullFailed", "words"),
        "invalid image name": StateCase(
            waiting_container("InvalidImageName"), PHASE_STARTING, "ImagePullFailed", "words"
        ),
        "container config error": StateCase(
            waiting_container("CreateContainerConfigError"), PHASE_STARTING, "ContainerConfigError", "words"
        ),
        "container run error": StateCase(
            waiting_container("RunContainerError"), PHASE_STARTING, "ContainerConfigError", "words"
        ),
        "volume with missing Secret": StateCase(
            waiting_container("ContainerCreating", warning=ReasonMessage("FailedMount", 'secret "k" not found')),
            PHASE_STARTING,
            "SecretNotFound",
            'secret "k" not found',
        ),
        "model cache is filled": StateCase(
            cache_container(RUNNING_STATE), PHASE_STARTING, "PodPending", "is filling or verifying the model cache"
        ),
        "model cache is filled, trainer follows": StateCase(
            cache_container({"terminated": {"exitCode": 0}}), PHASE_STARTING, "PodPending", "is starting"
        ),
        "image pull backoff of the init container": StateCase(
            cache_container({"waiting": {"reason": "ImagePullBackOff", "message": "words"}}),
            PHASE_STARTING,
            "ImagePullFailed",
            "words",
        ),
        "init container killed": StateCase(
            cache_container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "Failed"),
            PHASE_STARTING,
            "Retrying",
            "The init container model-cache was terminated (OOMKilled), so that no trainer started.",
        ),
        "init container killed, Job failed": StateCase(
            cache_container(
                {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "Failed", JOB_BACKOFF_LIMIT_EXCEEDED
            ),
            PHASE_FAILED,
            "OOMKilled",
            "The init container model-cache was terminated",
        ),
        "pod warning": StateCase(
            waiting_container("ContainerCreating", warning=ReasonMessage("NetworkNotReady", "cni")),
            PHASE_STARTING,
            "PodPending",
            "cni",
        ),
        "running": StateCase(
            ObservedState(job(active=1), (pod(state=RUNNING_STATE, phase="Running"),)),
            PHASE_RUNNING,
            "PodRunning",
            "bot-1",
        ),
        "pod succeeded, Job not complete yet": StateCase(
            finished_attempt(0, build_termination_message("Completed")),
            PHASE_FINISHING,
            "Finishing",
            "completed",
        ),
        "container succeeded, pod not yet": StateCase(
            ObservedState(
                job(active=1), (pod(state=terminated(0, build_termination_message("Completed")), phase="Running"),)
            ),
            PHASE_FINISHING,
            "Finishing",
            "completed",
        ),
        "container failed, pod not yet": StateCase(
            ObservedState(
                job(active=1),
                (pod(state=terminated(75, build_termination_message("StorageUnreachable")), phase="Running"),),
            ),
            PHASE_STARTING,
            "Retrying",
            "StorageUnreachable",
        ),
        "permanent error, Job not failed yet": StateCase(
            finished_attempt(42, build_termination_message("DataInvalid")),
            PHASE_FINISHING,
            "Finishing",
            "DataInvalid: words",
        ),
        "first attempt failed": StateCase(
            finished_attempt(75, build_termination_message("StorageUnreachable")),
            PHASE_STARTING,
            "Retrying",
            "StorageUnreachable",
        ),
        "pod of second attempt rejected": StateCase(
            ObservedState(
                job(), (pod(phase="Failed", reason="Evicted"),), warning=ReasonMessage("FailedCreate", "exceeded quota")
            ),
            PHASE_STARTING,
            "JobRefused",
            "exceeded quota",
        ),
        "attempt preempted": StateCase(
            finished_attempt(143, build_termination_message("Preempted")),
            PHASE_STARTING,
            "Retrying",
            "Preempted",
        ),
        "attempt evicted": StateCase(
            ObservedState(job(), (pod(phase="Failed", reason="Evicted", message="low on memory"),)),
            PHASE_STARTING,
            "Retrying",
            "Evicted: low on memory",
        ),
        "second attempt pending": StateCase(
            ObservedState(job(), (first_pod, pod(**second_pod_fields))),
            PHASE_STARTING,
            "Retrying",
            "no route",
        ),
        "second attempt unschedulable": StateCase(
            ObservedState(job(), (first_pod, pod(conditions=[unscheduled], **second_pod_fields))),
            PHASE_STARTING,
            "Unschedulable",
            "no route",
        ),
        "second attempt running": StateCase(
            ObservedState(job(), (first_pod, pod(state=RUNNING_STATE, phase="Running", **second_pod_fields))),
            PHASE_RUNNING,
            "PodRunning",
            "bot-2",
        ),
        "complete": StateCase(
            finished_attempt(0, build_termination_message("Completed"), conditions=JOB_COMPLETE),
            PHASE_COMPLETE,
            "Completed",
            "words",
        ),
        "already complete": StateCase(
            finished_attempt(0, build_termination_message("AlreadyComplete"), conditions=JOB_COMPLETE),
            PHASE_COMPLETE,
            "AlreadyComplete",
            "",
        ),
        "complete, pod deleted": StateCase(
            ObservedState(job(JOB_COMPLETE)),
            PHASE_COMPLETE,
            outcome_unavailable,
            "spec.output.uri",
        ),
        "complete, no termination message": StateCase(
            finished_attempt(0, conditions=JOB_COMPLETE),
            PHASE_COMPLETE,
            outcome_unavailable,
            "termination message is missing",
        ),
        "complete, outcome of a failure": StateCase(
            finished_attempt(0, build_termination_message("DataInvalid"), conditions=JOB_COMPLETE),
            PHASE_COMPLETE,
            outcome_unavailable,
            "termination message is missing",
        ),
        "complete, Job being deleted": StateCase(
            ObservedState({**deleted_job, **job(JOB_COMPLETE)}),
            PHASE_COMPLETE,
            outcome_unavailable,
            "termination message is missing",
        ),
        "complete, outcome of the previous attempt": StateCase(
            ObservedState(job(JOB_COMPLETE), (first_pod,)),
            PHASE_COMPLETE,
            outcome_unavailable,
            "termination message is missing",
        ),
        "permanent error of a worker older than rank 0": StateCase(
            ObservedState(
                job(JOB_POD_FAILURE_POLICY),
                (_worker_pod(1, terminated(42, build_termination_message("OutOfMemory"))), peer_lost_pod),
            ),
            PHASE_FAILED,
            "OutOfMemory",
            "words",
        ),
        "backoff limit exceeded by a worker": StateCase(
            ObservedState(
                job(JOB_BACKOFF_LIMIT_EXCEEDED), (_worker_pod(1, terminated(137, reason="OOMKilled")), peer_lost_pod)
            ),
            PHASE_FAILED,
            "OOMKilled",
            "memory",
        ),
        "worker failed, retry follows": StateCase(
            ObservedState(
                job(), (_worker_pod(1, terminated(75, build_termination_message("StorageUnreachable"))), peer_lost_pod)
            ),
            PHASE_STARTING,
            "Retrying",
            "StorageUnreachable",
        ),
        "Job failing": StateCase(
            ObservedState(
                failing_job, (pod(state=terminated(143, build_termination_message("Preempted")), phase="Failed"),)
            ),
            PHASE_FINISHING,
            "Finishing",
            "The Job is failing.",
        ),
        "Job failing because of a worker": StateCase(
            ObservedState(failing_job, (_worker_pod(1, terminated(137, reason="OOMKilled")), peer_lost_pod)),
            PHASE_FINISHING,
            "Finishing",
            "memory",
        ),
        "Job failing, no trainer started": StateCase(
            ObservedState(failing_job, (pod(phase="Failed", reason="UnexpectedAdmissionError"),)),
            PHASE_STARTING,
            "JobPending",
            "UnexpectedAdmissionError",
        ),
        "Job failing, pod on a lost node": StateCase(
            ObservedState(failing_job, (_expire_grace_period(pod()),)),
            PHASE_STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "permanent error": StateCase(
            finished_attempt(42, build_termination_message("DataInvalid"), conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            "DataInvalid",
            "words",
        ),
        "permanent error, no termination message": StateCase(
            finished_attempt(42, conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            outcome_unavailable,
            "code 42",
        ),
        "permanent error, malformed termination message": StateCase(
            finished_attempt(42, '{"reason":', conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            outcome_unavailable,
            "code 42",
        ),
        "permanent error, oversized termination message": StateCase(
            finished_attempt(42, oversized_message, conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            outcome_unavailable,
            "code 42",
        ),
        "permanent error, unknown reason": StateCase(
            finished_attempt(42, build_termination_message("Hacked"), conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            outcome_unavailable,
            "code 42",
        ),
        "permanent error, outcome of a success": StateCase(
            finished_attempt(42, build_termination_message("Completed"), conditions=JOB_POD_FAILURE_POLICY),
            PHASE_FAILED,
            outcome_unavailable,
            "42",
        ),
        "backoff limit exceeded": StateCase(
            finished_attempt(
                75, build_termination_message("StorageUnreachable"), conditions=JOB_BACKOFF_LIMIT_EXCEEDED
            ),
            PHASE_FAILED,
            "StorageUnreachable",
            "words",
        ),
        "backoff limit exceeded, no termination message": StateCase(
            finished_attempt(1, conditions=JOB_BACKOFF_LIMIT_EXCEEDED),
            PHASE_FAILED,
            "BackoffLimitExceeded",
            "code 1 ",
        ),
        "backoff limit exceeded, out of memory": StateCase(
            finished_attempt(137, termination_reason="OOMKilled", conditions=JOB_BACKOFF_LIMIT_EXCEEDED),
            PHASE_FAILED,
            "OOMKilled",
            "limits.memory",
        ),
        "suspended": StateCase(
            ObservedState(run_policy=suspend_policy),
            PHASE_SUSPENDED,
            "Suspended",
            "spec.suspend",
        ),
        "suspending, pod running": StateCase(
            ObservedState(deleted_job, (running_pod,), run_policy=suspend_policy),
            PHASE_RUNNING,
            "Suspending",
            "bot-1",
        ),
        "suspending, pod pending": StateCase(
            ObservedState(deleted_job, (pod(),), run_policy=suspend_policy),
            PHASE_STARTING,
            "Suspending",
            "bot-1",
        ),
        "suspending, pod terminated": StateCase(
            ObservedState(deleted_job, (pod(phase="Failed"),), run_policy=suspend_policy),
            PHASE_STARTING,
            "Suspending",
            "being deleted",
        ),
        "suspending, pod of a deleted Job": StateCase(
            ObservedState(terminating_pod="bot-7", run_policy=suspend_policy),
            PHASE_STARTING,
            "Suspending",
            "bot-7",
        ),
        "suspended after completion": StateCase(
            ObservedState(
                job(JOB_COMPLETE),
                (pod(state=terminated(0, build_termination_message("Completed")), phase="Succeeded"),),
                run_policy=suspend_policy,
            ),
            PHASE_COMPLETE,
            "Completed",
            "words",
        ),
        **_build_cancel_cases(deleted_job, running_pod),
        **_build_budget_cases(deleted_job),
        **_build_step_cases(),
        "startup deadline exceeded": StateCase(
            ObservedState(job(**job_started), (pod(conditions=[unscheduled]),), run_policy=startup_policy),
            PHASE_FAILED,
            "StartupDeadlineExceeded",
            "0/3",
        ),
        "startup deadline passed while queued": StateCase(
            ObservedState({**queued_job, "status": job_started}, run_policy=startup_policy),
            PHASE_STARTING,
            "Queued",
            "Kueue",
        ),
        "startup deadline passed, trainer running": StateCase(
            ObservedState(job(**job_started), (running_pod,), run_policy=startup_policy),
            PHASE_RUNNING,
            "PodRunning",
            "bot-1",
        ),
        "startup deadline passed, trainer ran before": StateCase(
            ObservedState(job(**job_started), (first_pod, pod(**second_pod_fields)), run_policy=startup_policy),
            PHASE_STARTING,
            "Retrying",
            "no route",
        ),
        "active deadline exceeded": StateCase(
            finished_attempt(143, build_termination_message("Preempted"), conditions=job_deadline_exceeded),
            PHASE_FAILED,
            "DeadlineExceeded",
            "activeDeadlineSeconds",
        ),
        "active deadline exceeded, result published": StateCase(
            finished_attempt(0, build_termination_message("Completed"), conditions=job_deadline_exceeded),
            PHASE_COMPLETE,
            "Completed",
            "words",
        ),
        "node lost": StateCase(ObservedState(job(active=1), (lost_pod,)), PHASE_STARTING, "NodeLost", "out-of-service"),
        "node of another worker lost": StateCase(
            ObservedState(job(), (first_pod, _expire_grace_period(_worker_pod(1, RUNNING_STATE, "Running")))),
            PHASE_STARTING,
            "NodeLost",
            "Pod bot-1-x",
        ),
        "node lost while the run is suspended": StateCase(
            ObservedState(deleted_job, (lost_pod,), run_policy=suspend_policy),
            PHASE_STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "node lost while the Job is deleted": StateCase(
            ObservedState(deleted_job, (lost_pod,)),
            PHASE_STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "node lost, Job deleted": StateCase(
            ObservedState(blocked=Blocked(OperatorReason.JOB_PENDING, "words"), orphaned_pods=(lost_pod,)),
            PHASE_STARTING,
            "NodeLost",
            "out-of-service",
        ),
        "queued after an attempt": StateCase(
            ObservedState(job(suspend=True), (first_pod,), queue_status=ReasonMessage("Preempted", "by another")),
            PHASE_STARTING,
            "Queued",
            "by another",
        ),
        "failed, pod deleted": StateCase(
            ObservedState(job(JOB_BACKOFF_LIMIT_EXCEEDED)),
            PHASE_FAILED,
            "BackoffLimitExceeded",
            "backoff limit",
        ),
    }
