"""How the bodies of Jobs, pods and events are read. Pure; the only place that knows their shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api import API_VERSION, KIND
from finetune_operator.api.labels import TRAINER_CONTAINER
from finetune_operator.api.objects import Body
from finetune_trainer.contract import OUTCOME_MAX_BYTES, CheckpointRecord, ExitCode, Outcome, StoredCheckpoint

IMAGE_ERROR_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
CONTAINER_ERROR_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_IGNORED_EXIT_CODES = frozenset({ExitCode.PREEMPTED, ExitCode.PEER_LOST})
COMPLETION_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
VOLUME_ERROR_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "ProvisioningFailed"})


class ReasonMessage(NamedTuple):
    """A reason and a message as some part of Kubernetes gave them."""

    reason: str
    message: str


class ContainerTermination(NamedTuple):
    """How one attempt ended."""

    outcome: Outcome | None
    exit_code: int | None
    reason_message: ReasonMessage
    checkpoint: StoredCheckpoint | None = None
    """The newest that its termination message names."""


def get_controller_ref(body: Body) -> Body:
    """The owner reference of the object's controller; empty if it has none."""
    references = body["metadata"].get("ownerReferences", [])
    return next((reference for reference in references if reference.get("controller")), {})


def is_controlled_by(body: Body, uid: str) -> bool:
    """Whether that object controls this one."""
    return bool(get_controller_ref(body).get("uid") == uid)


def belongs_to_job_of(pod: Body, finetunejob: Body) -> bool:
    """Whether a Job that is gone, and with it what tells whose it was, was this one's and not an earlier namesake's."""
    owner, meta = get_controller_ref(pod), finetunejob["metadata"]
    is_named_alike = (owner.get("kind"), owner.get("name")) == ("Job", meta["name"])
    return is_named_alike and bool(pod["metadata"].get("creationTimestamp", "") >= meta.get("creationTimestamp", ""))


def is_controlled_by_finetunejob(body: Body, name: str) -> bool:
    """Whether some FineTuneJob of that name controls it, maybe one that is gone."""
    owner = get_controller_ref(body)
    return (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) == (API_VERSION, KIND, name)


def find_true_condition(body: Body, condition_type: str) -> Body | None:
    """The condition of that type if it is true."""
    conditions = body.get("status", {}).get("conditions") or []
    return next(
        (
            candidate
            for candidate in conditions
            if candidate["type"] == condition_type and candidate["status"] == "True"
        ),
        None,
    )


def is_job_finished(job: Body) -> bool:
    """Whether the Job will start no more pods."""
    return bool(find_true_condition(job, "Complete") or find_true_condition(job, "Failed"))


def is_job_finishing(job: Body) -> bool:
    """Whether the Job starts no more pods, and says how it ended when the last of them has."""
    return bool(find_true_condition(job, "FailureTarget") or find_true_condition(job, "SuccessCriteriaMet"))


def get_job_finished_at(job: Body | None) -> str | None:
    """When the Job ended."""
    condition = job and (find_true_condition(job, "Complete") or find_true_condition(job, "Failed"))
    return condition.get("lastTransitionTime") if condition else None


def is_being_deleted(body: Body) -> bool:
    """Whether somebody deleted it and it is not gone yet."""
    return "deletionTimestamp" in body["metadata"]


def find_newest_pod(pods: Iterable[Body]) -> Body | None:
    """The pod of the last attempt."""
    return max(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]), default=None
    )


def is_alive(pod: Body) -> bool:
    """Whether it may still run or does."""
    return pod.get("status", {}).get("phase", "Pending") in ("Pending", "Running", "Unknown")


def get_trainer_status(pod: Body) -> Body:
    """The trainer container's status; empty before the kubelet wrote one. A service mesh may have added others."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((status for status in statuses if status["name"] == TRAINER_CONTAINER), {})


def is_trainer_running(pod: Body) -> bool:
    """Whether the trainer container runs. A pod of a node that is gone fails with its container's last known state."""
    return is_alive(pod) and "running" in get_trainer_status(pod).get("state", {})


def is_termination_reported(pod: Body) -> bool:
    """Whether the kubelet has reported that the trainer container ended, and with it the termination message."""
    return "terminated" in get_trainer_status(pod).get("state", {})


def get_finished_at(pod: Body) -> str | None:
    """When the trainer container ended; None if it has not, or if nobody knows."""
    finish_time: str | None = get_trainer_status(pod).get("state", {}).get("terminated", {}).get("finishedAt")
    return finish_time or (None if is_alive(pod) else _get_disrupted_at(pod))


def _get_disrupted_at(pod: Body) -> str | None:
    """When a pod was taken for lost whose node did not report its end: it held its GPUs until then at most."""
    disruption = find_true_condition(pod, "DisruptionTarget")
    return disruption.get("lastTransitionTime") if disruption else None


def rank_zero_pods(pods: Iterable[Body]) -> list[Body]:
    """The pods that speak for their attempt: of several nodes, the first."""
    return [pod for pod in pods if get_completion_index(pod) == "0"]


def reporting_pods(pods: Iterable[Body]) -> list[Body]:
    """The leaders, and any other whose end is the end of all."""
    all_pods = list(pods)
    return rank_zero_pods(all_pods) + [
        pod
        for pod in all_pods
        if get_completion_index(pod) != "0" and get_termination(pod).exit_code == ExitCode.PERMANENT
    ]


def root_cause_pod(pods: Sequence[Body]) -> Body | None:
    """The pod whose end explains how an attempt has ended: a leader that only lost its peers does not."""
    reporting = reporting_pods(pods)
    root_cause = find_newest_pod(
        pod for pod in reporting if get_termination(pod).exit_code == ExitCode.PERMANENT
    ) or find_newest_pod(reporting)
    if root_cause is None or get_termination(root_cause).exit_code != ExitCode.PEER_LOST:
        return root_cause
    return find_newest_pod(find_failed_peers(root_cause, pods)) or root_cause


def find_failed_peers(rank_zero_pod: Body, pods: Sequence[Body]) -> list[Body]:
    """Those of the same attempt whose own end counts."""
    start_time, finish_time = get_started_at(rank_zero_pod) or "", get_finished_at(rank_zero_pod) or ""
    peers = (
        pod
        for pod in pods
        if get_completion_index(pod) != "0" and get_termination(pod).exit_code and not is_interrupted(pod)
    )
    return [
        pod
        for pod in peers
        if (get_started_at(pod) or "") <= finish_time and (get_finished_at(pod) or "") >= start_time
    ]


def is_interrupted(pod: Body) -> bool:
    """Whether the Job starts another one without counting this, as its `podFailurePolicy` says."""
    conditions = pod.get("status", {}).get("conditions") or []
    if any(condition["type"] == "DisruptionTarget" and condition["status"] == "True" for condition in conditions):
        return True
    return get_termination(pod).exit_code in _IGNORED_EXIT_CODES


def get_completion_index(pod: Body) -> str:
    """Which of the pods of an attempt it is."""
    return str(pod["metadata"].get("annotations", {}).get(COMPLETION_INDEX_ANNOTATION, "0"))


def get_started_at(pod: Body) -> str | None:
    """When the trainer container started; None if it has not."""
    state = get_trainer_status(pod).get("state", {})
    start_time: str | None = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return start_time


def get_waiting_reason(pod: Body) -> ReasonMessage | None:
    """Why the trainer container has not started, in the kubelet's words."""
    waiting_state = get_trainer_status(pod).get("state", {}).get("waiting")
    return ReasonMessage(waiting_state.get("reason", ""), waiting_state.get("message", "")) if waiting_state else None


def get_unschedulable_message(pod: Body) -> str | None:
    """Why no node takes the pod, in the scheduler's words."""
    for condition in pod.get("status", {}).get("conditions") or []:
        if (
            condition["type"] == "PodScheduled"
            and condition["status"] == "False"
            and condition.get("reason") == "Unschedulable"
        ):
            return str(condition.get("message", "no node takes the pod"))
    return None


def is_scheduled(pod: Body) -> bool:
    """Whether a node was found."""
    return "nodeName" in pod.get("spec", {})


def get_termination(pod: Body) -> ContainerTermination:
    """How the attempt ended. The outcome is believed only if the exit status says the same."""
    terminated = get_trainer_status(pod).get("state", {}).get("terminated")
    pod_status = pod.get("status", {})
    if not terminated:
        return ContainerTermination(
            None, None, ReasonMessage(pod_status.get("reason", ""), pod_status.get("message", ""))
        )
    text = terminated.get("message", "")
    outcome = parse_outcome(text)
    checkpoint = _get_last_checkpoint(outcome) if outcome else parse_checkpoint_record(text)
    if outcome and outcome.reason.exit_code != terminated["exitCode"]:
        outcome = None
    reason_message = ReasonMessage(
        pod_status.get("reason") or terminated.get("reason", ""), pod_status.get("message", "")
    )
    return ContainerTermination(outcome, terminated["exitCode"], reason_message, checkpoint)


def _get_last_checkpoint(outcome: Outcome) -> StoredCheckpoint | None:
    progress = outcome.progress
    if progress is None or progress.last_checkpoint_time is None:
        return None
    return StoredCheckpoint(time=progress.last_checkpoint_time, step=progress.last_checkpoint_step or 0)


def parse_checkpoint_record(text: str) -> StoredCheckpoint | None:
    """The checkpoint that a termination message names which is no outcome; None if it names none."""
    if len(text.encode(errors="replace")) > OUTCOME_MAX_BYTES:
        return None
    try:
        return CheckpointRecord.model_validate_json(text, extra="ignore").checkpoint
    except ValidationError:
        return None


def parse_outcome(text: str) -> Outcome | None:
    """The trainer's last word; None if it is none, for any process in the container may write there."""
    if len(text.encode(errors="replace")) > OUTCOME_MAX_BYTES:
        return None
    try:
        return Outcome.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None


def find_newest_warning(events: Iterable[Body]) -> ReasonMessage | None:
    """What the last warning says."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    newest = max(warnings, key=get_event_time, default=None)
    return ReasonMessage(newest.get("reason", ""), newest.get("message", "")) if newest else None


def get_event_time(event: Body) -> str:
    """When it was last seen."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
