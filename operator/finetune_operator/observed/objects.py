"""How the bodies of Jobs, pods and events are read. Pure; the only place that knows their shape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from finetune_operator.api import API_VERSION, KIND
from finetune_operator.resources.job import CONTAINER
from finetune_trainer.contract import OUTCOME_MAX_BYTES, CheckpointRecord, ExitCode, Outcome, StoredCheckpoint

Body = dict[str, Any]


IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
CONTAINER_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_NOT_COUNTED = frozenset({ExitCode.PREEMPTED, ExitCode.PEER_LOST})
INDEX = "batch.kubernetes.io/job-completion-index"
VOLUME_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "ProvisioningFailed"})


class Said(NamedTuple):
    """A reason and a message as some part of Kubernetes gave them."""

    reason: str
    message: str


class Ended(NamedTuple):
    """How one attempt ended."""

    outcome: Outcome | None
    exit_code: int | None
    said: Said
    checkpoint: StoredCheckpoint | None = None
    """The newest that its termination message names."""


def controller(body: Body) -> Body:
    """The owner reference of the object's controller; empty if it has none."""
    references = body["metadata"].get("ownerReferences", [])
    return next((each for each in references if each.get("controller")), {})


def is_owned_by(body: Body, uid: str) -> bool:
    """Whether that object controls this one."""
    return bool(controller(body).get("uid") == uid)


def is_of_a_job_of(pod: Body, finetunejob: Body) -> bool:
    """Whether a Job that is gone, and with it what tells whose it was, was this one's and not an earlier namesake's."""
    owner, meta = controller(pod), finetunejob["metadata"]
    named = (owner.get("kind"), owner.get("name")) == ("Job", meta["name"])
    return named and bool(pod["metadata"].get("creationTimestamp", "") >= meta.get("creationTimestamp", ""))


def is_of_a_finetunejob(body: Body, name: str) -> bool:
    """Whether some FineTuneJob of that name controls it, maybe one that is gone."""
    owner = controller(body)
    return (owner.get("apiVersion"), owner.get("kind"), owner.get("name")) == (API_VERSION, KIND, name)


def condition(body: Body, kind: str) -> Body | None:
    """The condition of that type if it is true."""
    conditions = body.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def has_ended(job: Body) -> bool:
    """Whether the Job will start no more pods."""
    return bool(condition(job, "Complete") or condition(job, "Failed"))


def is_ending(job: Body) -> bool:
    """Whether the Job starts no more pods, and says how it ended when the last of them has."""
    return bool(condition(job, "FailureTarget") or condition(job, "SuccessCriteriaMet"))


def ended_at(job: Body | None) -> str | None:
    """When the Job ended."""
    end = job and (condition(job, "Complete") or condition(job, "Failed"))
    return end.get("lastTransitionTime") if end else None


def is_being_deleted(body: Body) -> bool:
    """Whether somebody deleted it and it is not gone yet."""
    return "deletionTimestamp" in body["metadata"]


def newest(pods: Iterable[Body]) -> Body | None:
    """The pod of the last attempt."""
    return max(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]), default=None
    )


def is_alive(pod: Body) -> bool:
    """Whether it may still run or does."""
    return pod.get("status", {}).get("phase", "Pending") in ("Pending", "Running", "Unknown")


def trainer(pod: Body) -> Body:
    """The trainer container's status; empty before the kubelet wrote one. A service mesh may have added others."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((each for each in statuses if each["name"] == CONTAINER), {})


def is_running(pod: Body) -> bool:
    """Whether the trainer container runs. A pod of a node that is gone fails with its container's last known state."""
    return is_alive(pod) and "running" in trainer(pod).get("state", {})


def is_reported(pod: Body) -> bool:
    """Whether the kubelet has reported that the trainer container ended, and with it the termination message."""
    return "terminated" in trainer(pod).get("state", {})


def finished_at(pod: Body) -> str | None:
    """When the trainer container ended; None if it has not, or if nobody knows."""
    ended: str | None = trainer(pod).get("state", {}).get("terminated", {}).get("finishedAt")
    return ended or (None if is_alive(pod) else _disrupted_at(pod))


def _disrupted_at(pod: Body) -> str | None:
    """When a pod was taken for lost whose node did not report its end: it held its GPUs until then at most."""
    lost = condition(pod, "DisruptionTarget")
    return lost.get("lastTransitionTime") if lost else None


def leaders(pods: Iterable[Body]) -> list[Body]:
    """The pods that speak for their attempt: of several nodes, the first."""
    return [pod for pod in pods if index(pod) == "0"]


def telling(pods: Iterable[Body]) -> list[Body]:
    """The leaders, and any other whose end is the end of all."""
    every = list(pods)
    return leaders(every) + [pod for pod in every if index(pod) != "0" and ended(pod).exit_code == ExitCode.PERMANENT]


def cause(pods: Sequence[Body]) -> Body | None:
    """The pod whose end explains how an attempt has ended: a leader that only lost its peers does not."""
    told = telling(pods)
    last = newest(pod for pod in told if ended(pod).exit_code == ExitCode.PERMANENT) or newest(told)
    if last is None or ended(last).exit_code != ExitCode.PEER_LOST:
        return last
    return newest(failed_peers(last, pods)) or last


def failed_peers(leader: Body, pods: Sequence[Body]) -> list[Body]:
    """Those of the same attempt whose own end counts."""
    since, until = started_at(leader) or "", finished_at(leader) or ""
    others = (pod for pod in pods if index(pod) != "0" and ended(pod).exit_code and not is_interrupted(pod))
    return [pod for pod in others if (started_at(pod) or "") <= until and (finished_at(pod) or "") >= since]


def is_interrupted(pod: Body) -> bool:
    """Whether the Job starts another one without counting this, as its `podFailurePolicy` says."""
    conditions = pod.get("status", {}).get("conditions") or []
    if any(each["type"] == "DisruptionTarget" and each["status"] == "True" for each in conditions):
        return True
    return ended(pod).exit_code in _NOT_COUNTED


def index(pod: Body) -> str:
    """Which of the pods of an attempt it is."""
    return str(pod["metadata"].get("annotations", {}).get(INDEX, "0"))


def started_at(pod: Body) -> str | None:
    """When the trainer container started; None if it has not."""
    state = trainer(pod).get("state", {})
    started: str | None = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return started


def waiting(pod: Body) -> Said | None:
    """Why the trainer container has not started, in the kubelet's words."""
    state = trainer(pod).get("state", {}).get("waiting")
    return Said(state.get("reason", ""), state.get("message", "")) if state else None


def unschedulable(pod: Body) -> str | None:
    """Why no node takes the pod, in the scheduler's words."""
    for each in pod.get("status", {}).get("conditions") or []:
        if each["type"] == "PodScheduled" and each["status"] == "False" and each.get("reason") == "Unschedulable":
            return str(each.get("message", "no node takes the pod"))
    return None


def is_scheduled(pod: Body) -> bool:
    """Whether a node was found."""
    return "nodeName" in pod.get("spec", {})


def ended(pod: Body) -> Ended:
    """How the attempt ended. The outcome is believed only if the exit status says the same."""
    state = trainer(pod).get("state", {}).get("terminated")
    status = pod.get("status", {})
    if not state:
        return Ended(None, None, Said(status.get("reason", ""), status.get("message", "")))
    text = state.get("message", "")
    outcome = parse_outcome(text)
    checkpoint = _checkpoint_of(outcome) if outcome else parse_record(text)
    if outcome and outcome.reason.exit_code != state["exitCode"]:
        outcome = None
    said = Said(status.get("reason") or state.get("reason", ""), status.get("message", ""))
    return Ended(outcome, state["exitCode"], said, checkpoint)


def _checkpoint_of(outcome: Outcome) -> StoredCheckpoint | None:
    progress = outcome.progress
    if progress is None or progress.last_checkpoint_time is None:
        return None
    return StoredCheckpoint(time=progress.last_checkpoint_time, step=progress.last_checkpoint_step or 0)


def parse_record(text: str) -> StoredCheckpoint | None:
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


def newest_warning(events: Iterable[Body]) -> Said | None:
    """What the last warning says."""
    warnings = [event for event in events if event.get("type") == "Warning"]
    last = max(warnings, key=event_time, default=None)
    return Said(last.get("reason", ""), last.get("message", "")) if last else None


def event_time(event: Body) -> str:
    """When it was last seen."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or "")
