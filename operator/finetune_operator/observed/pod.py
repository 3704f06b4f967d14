"""Readers of training pods: the state of the trainer container, how it terminated, and which pods of an attempt count.

The pods of one attempt are distinguished by their completion index. A run on one node has only index 0.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import ValidationError

from finetune_operator.api.labels import MODEL_CACHE_CONTAINER, TRAINER_CONTAINER
from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import (
    ReasonMessage,
    find_true_condition,
    get_controller_ref,
    get_creation_time,
    get_name,
    is_being_deleted,
)
from finetune_trainer.contract import OUTCOME_MAX_BYTES, CheckpointRecord, ExitCode, Outcome, StoredCheckpoint

IMAGE_ERROR_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
"""Reasons of a waiting container whose image cannot be pulled."""
CONTAINER_ERROR_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
"""Reasons of a waiting container that cannot be created or started."""
COMPLETION_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_IGNORED_EXIT_CODES = frozenset({ExitCode.PREEMPTED, ExitCode.PEER_LOST})


class ContainerTermination(NamedTuple):
    """How the trainer container of one pod terminated."""

    outcome: Outcome | None
    """The outcome in the termination message, if it is valid and matches the exit code."""
    exit_code: int | None
    """The exit code, or None if the kubelet has not reported it."""
    reason_message: ReasonMessage
    """The reason and the message of the pod or of the container."""
    checkpoint: StoredCheckpoint | None = None
    """The latest checkpoint that the termination message names."""
    eviction_message: str = ""
    """The message of the kubelet, if it evicted the pod."""
    container: str = TRAINER_CONTAINER
    """The container that ended the pod: the init container if it was killed."""


_STORAGE_LIMIT_MESSAGES = (
    re.compile(r"""Usage of EmptyDir volume "(?P<volume>[^"]*)" exceeds the limit "(?P<limit>[^"]*)"."""),
    re.compile(r"Pod ephemeral local storage usage exceeds the total limit of containers (?P<limit>\S+?)\. ?$"),
    re.compile(r"""Container (?P<container>\S+) exceeded its local ephemeral storage limit "(?P<limit>[^"]*)"."""),
)
"""Messages of the kubelet about a pod that used more storage than it may use, so that each pod after it would, too.
https://github.com/kubernetes/kubernetes/blob/master/pkg/kubelet/eviction/helpers.go"""


class Attempt(NamedTuple):
    """One start of a trainer. Attempts are in the order of the tuples.

    The clock of a node sets the start, so the starts of two attempts cannot be compared.
    """

    creation_time: str
    """When its pod with index 0 was created, by the clock of the API server."""
    start_time: str


class StorageEviction(NamedTuple):
    """A pod was evicted because it used more storage than a limit of its own."""

    message: str
    """The message of the kubelet."""
    volume: str | None
    """The name of the volume, or None if the limit is one of a container or of the pod."""


def find_storage_eviction(pods: Iterable[Body]) -> StorageEviction | None:
    """Return the eviction of the first pod that exceeded a storage limit, or None if no pod did.

    A pod whose trainer had succeeded before is none: the next attempt finds its result or its checkpoint.
    """
    for pod in pods:
        message = "" if get_termination(pod).exit_code == ExitCode.OK else get_eviction_message(pod)
        for pattern in _STORAGE_LIMIT_MESSAGES:
            if match := pattern.search(message):
                return StorageEviction(message, match.groupdict().get("volume"))
    return None


def get_eviction_message(pod: Body) -> str:
    """Return the message of the kubelet that evicted the pod, or an empty string if it was not evicted."""
    status = pod.get("status", {})
    return str(status.get("message", "")).strip() if status.get("reason") == "Evicted" else ""


def belongs_to_job_of(pod: Body, finetunejob: Body) -> bool:
    """Return whether the pod belongs to a deleted Job of this FineTuneJob, not of an earlier one with the same name.

    The pod refers to its Job by name, and the deleted Job's owner is unknown. The pod is younger than its FineTuneJob.
    """
    owner = get_controller_ref(pod)
    has_same_name = (owner.get("kind"), owner.get("name")) == ("Job", get_name(finetunejob))
    return has_same_name and get_creation_time(pod) >= get_creation_time(finetunejob)


def get_node_name(pod: Body) -> str | None:
    """Return the name of the node that the pod was scheduled to, or None if it was not scheduled."""
    name: str | None = pod.get("spec", {}).get("nodeName")
    return name


def get_grace_period_end(pod: Body) -> str | None:
    """Return when the grace period of a deleted pod ends, or None if the pod was not deleted.

    The API server adds the grace period to the time of the deletion.
    """
    end: str | None = pod["metadata"].get("deletionTimestamp")
    return end


def get_completion_index(pod: Body) -> str:
    """Return the index of the pod among the pods of its attempt."""
    return str(pod["metadata"].get("annotations", {}).get(COMPLETION_INDEX_ANNOTATION, "0"))


def get_phase(pod: Body) -> str:
    """Return the phase of the pod. A pod without a status is pending."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def is_alive(pod: Body) -> bool:
    """Return whether the pod is running or may still run."""
    return get_phase(pod) in ("Pending", "Running", "Unknown")


def get_trainer_status(pod: Body) -> Body:
    """Return the status of the trainer container, or an empty dictionary before the kubelet has reported one.

    Other containers, such as those that a service mesh has injected, are ignored.
    """
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((status for status in statuses if status["name"] == TRAINER_CONTAINER), {})


def _get_trainer_state(pod: Body) -> Body:
    state: Body = get_trainer_status(pod).get("state", {})
    return state


def _get_cache_state(pod: Body) -> Body:
    """Return the state of the init container that fills the model cache, or an empty dictionary."""
    statuses = pod.get("status", {}).get("initContainerStatuses") or []
    status: Body = next((status for status in statuses if status["name"] == MODEL_CACHE_CONTAINER), {})
    state: Body = status.get("state", {})
    return state


def is_filling_model_cache(pod: Body) -> bool:
    """Return whether the init container that fills the model cache is running."""
    return "running" in _get_cache_state(pod)


def is_trainer_running(pod: Body) -> bool:
    """Return whether the trainer container is running.

    A pod on a deleted node has failed, but its container keeps the state that was reported last.
    """
    return is_alive(pod) and "running" in _get_trainer_state(pod)


def get_started_at(pod: Body) -> str | None:
    """Return when the trainer container started, or None if it has not started."""
    state = _get_trainer_state(pod)
    start_time: str | None = (state.get("running") or state.get("terminated") or {}).get("startedAt")
    return start_time


def get_finished_at(pod: Body) -> str | None:
    """Return when the trainer container terminated, or None if it has not terminated or if the time is unknown.

    If the node never reported it, this is the time when the pod was marked as disrupted. It held its GPUs at most
    until then.
    """
    finish_time: str | None = _get_trainer_state(pod).get("terminated", {}).get("finishedAt")
    if finish_time or is_alive(pod):
        return finish_time
    disruption = find_true_condition(pod, "DisruptionTarget")
    return disruption.get("lastTransitionTime") if disruption else None


def get_attempt(pod: Body) -> Attempt | None:
    """Return the attempt of a pod with index 0, or None if its trainer has not started."""
    start_time = get_started_at(pod)
    return Attempt(get_creation_time(pod), start_time) if start_time else None


def is_scheduled(pod: Body) -> bool:
    """Return whether the pod was scheduled to a node."""
    return get_node_name(pod) is not None


def get_unschedulable_message(pod: Body) -> str | None:
    """Return the scheduler's explanation why no node fits the pod, or None if that is not the case."""
    for condition in pod.get("status", {}).get("conditions") or []:
        is_unscheduled = (condition["type"], condition["status"]) == ("PodScheduled", "False")
        if is_unscheduled and condition.get("reason") == "Unschedulable":
            return str(condition.get("message", "No node fits the pod."))
    return None


def get_waiting_reason(pod: Body) -> ReasonMessage | None:
    """Return the kubelet's reason why the trainer container, or the init container before it, is waiting, or None if
    it is not waiting."""
    waiting_state = _get_cache_state(pod).get("waiting") or _get_trainer_state(pod).get("waiting")
    return ReasonMessage(waiting_state.get("reason", ""), waiting_state.get("message", "")) if waiting_state else None


def is_termination_reported(pod: Body) -> bool:
    """Return whether the kubelet has reported the end of the trainer container, with its termination message."""
    return "terminated" in _get_trainer_state(pod)


def get_termination(pod: Body) -> ContainerTermination:
    """Return how the trainer container terminated. An outcome that contradicts the exit code is ignored."""
    terminated = _get_trainer_state(pod).get("terminated")
    pod_status = pod.get("status", {})
    reason, message = pod_status.get("reason", ""), pod_status.get("message", "")
    if not terminated and (cache_exit := _get_cache_state(pod).get("terminated", {})).get("exitCode"):
        reason_message = ReasonMessage(reason or cache_exit.get("reason", ""), message)
        return ContainerTermination(None, None, reason_message, container=MODEL_CACHE_CONTAINER)
    if not terminated:
        return ContainerTermination(None, None, ReasonMessage(reason, message))
    reason_message = ReasonMessage(reason or terminated.get("reason", ""), message)
    text = terminated.get("message", "")
    outcome = parse_outcome(text)
    checkpoint = _get_last_checkpoint(outcome) if outcome else parse_checkpoint_record(text)
    if outcome and outcome.reason.exit_code != terminated["exitCode"]:
        outcome = None
    return ContainerTermination(outcome, terminated["exitCode"], reason_message, checkpoint, get_eviction_message(pod))


def _get_last_checkpoint(outcome: Outcome) -> StoredCheckpoint | None:
    progress = outcome.progress
    if progress is None or progress.last_checkpoint_time is None:
        return None
    return StoredCheckpoint(time=progress.last_checkpoint_time, step=progress.last_checkpoint_step or 0)


def parse_outcome(text: str) -> Outcome | None:
    """Return the outcome in a termination message, or None if it has none.

    Every process in the container can write the message, so its size and its fields are validated.
    """
    if len(text.encode(errors="replace")) > OUTCOME_MAX_BYTES:
        return None
    try:
        return Outcome.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None


def parse_checkpoint_record(text: str) -> StoredCheckpoint | None:
    """Return the checkpoint in a termination message without an outcome, or None if it has none.

    A trainer that saves a checkpoint writes such a record, in case that it is killed.
    """
    if len(text.encode(errors="replace")) > OUTCOME_MAX_BYTES:
        return None
    try:
        return CheckpointRecord.model_validate_json(text, extra="ignore").checkpoint
    except ValidationError:
        return None


def is_interrupted(pod: Body) -> bool:
    """Return whether the Job replaces the pod without counting a failure, according to its `podFailurePolicy`."""
    if find_true_condition(pod, "DisruptionTarget"):
        return True
    return get_termination(pod).exit_code in _IGNORED_EXIT_CODES


def find_newest_pod(pods: Iterable[Body]) -> Body | None:
    """Return the pod that was created last."""
    return max(pods, key=lambda pod: (get_creation_time(pod), get_name(pod)), default=None)


def list_rank_zero_pods(pods: Iterable[Body]) -> list[Body]:
    """Return the pods with index 0. They report progress, checkpoints and the outcome of their attempt."""
    return [pod for pod in pods if get_completion_index(pod) == "0"]


def list_superseded_pods(pods: Iterable[Body], last: Attempt | None, kept_attempts: int) -> list[Body]:
    """Return the pods that can be deleted because the status accounts for them: ended ones from before the last attempt
    that another pod of their index has replaced, except the `kept_attempts` newest of each index.
    """
    pods_by_index = defaultdict[str, list[Body]](list)
    for pod in sorted(pods, key=_get_creation_and_start):
        pods_by_index[get_completion_index(pod)].append(pod)
    superseded = []
    for replaced in (each[:-1] for each in pods_by_index.values()):
        ended = [pod for pod in replaced if not is_alive(pod) and not is_being_deleted(pod)]
        superseded += [pod for pod in ended if last and _get_creation_and_start(pod) < last][
            : max(0, len(ended) - kept_attempts)
        ]
    return superseded


def _get_creation_and_start(pod: Body) -> Attempt:
    return Attempt(get_creation_time(pod), get_started_at(pod) or "")


def list_reporting_pods(pods: Iterable[Body]) -> list[Body]:
    """Return the pods with index 0, and all others with a permanent error, which ends the run."""
    all_pods = list(pods)
    return list_rank_zero_pods(all_pods) + [
        pod for pod in all_pods if get_completion_index(pod) != "0" and _has_permanent_error(pod)
    ]


def find_root_cause_pod(pods: Sequence[Body]) -> Body | None:
    """Return the pod that explains why the last attempt ended.

    This is a pod with a permanent error, or else the newest pod with index 0. If that one ended because it lost a peer,
    it is the peer that failed.
    """
    reporting = list_reporting_pods(pods)
    root_cause = find_newest_pod(filter(_has_permanent_error, reporting)) or find_newest_pod(reporting)
    if root_cause is None or get_termination(root_cause).exit_code != ExitCode.PEER_LOST:
        return root_cause
    return find_newest_pod(find_failed_peers(root_cause, pods)) or root_cause


def _has_permanent_error(pod: Body) -> bool:
    return get_termination(pod).exit_code == ExitCode.PERMANENT


def find_failed_peers(rank_zero_pod: Body, pods: Sequence[Body]) -> list[Body]:
    """Return the other pods of the same attempt that failed and were not interrupted."""
    start_time, finish_time = get_started_at(rank_zero_pod) or "", get_finished_at(rank_zero_pod) or ""
    failed_pods = (
        pod
        for pod in pods
        if get_completion_index(pod) != "0" and get_termination(pod).exit_code and not is_interrupted(pod)
    )
    return [
        pod
        for pod in failed_pods
        if (get_started_at(pod) or "") <= finish_time and (get_finished_at(pod) or "") >= start_time
    ]
