"""What the operator writes into a FineTuneJob. Pure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_trainer.contract import DatasetReport, Model, Progress, Result

Timestamp = Annotated[str, StringConstraints(max_length=64)]


class ConditionType(StrEnum):
    """Conditions of a FineTuneJob. There is no `Ready`: a run is not a server."""

    COMPLETE = "Complete"  # terminal: a whole result is published
    FAILED = "Failed"  # terminal: no result, and no attempt will follow
    SUSPENDED = "Suspended"  # spec.suspend is set and no pod is left
    RUNNING = "Running"  # a trainer container runs
    RECONCILING = "Reconciling"  # kstatus: the Job does not exist yet
    STALLED = "Stalled"  # kstatus: failed, a person must act


class OperatorReason(StrEnum):
    """Reasons that the operator gives by itself; those of a run's end are the trainer's `Reason`."""

    JOB_PENDING = "JobPending"  # the Job does not exist yet
    JOB_CREATED = "JobCreated"  # the Job exists
    QUEUED = "Queued"  # the Job is suspended, by Kueue until there is quota for it
    SUSPENDING = "Suspending"  # spec.suspend is set and a pod saves its work
    SUSPENDED = "Suspended"  # spec.suspend is set and no pod is left
    POD_PENDING = "PodPending"  # the Job's pod has not started
    UNSCHEDULABLE = "Unschedulable"  # no node takes the pod
    IMAGE_PULL_FAILED = "ImagePullFailed"  # the node cannot get the image
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"  # a Secret, ConfigMap or claim that the pod names is missing
    POD_RUNNING = "PodRunning"  # a trainer container runs
    PROGRESS_STALLED = "ProgressStalled"  # a trainer container runs and has not moved for a long time
    NODE_LOST = "NodeLost"  # a pod that had to end has not: its node does not answer
    RETRYING = "Retrying"  # an attempt failed, another follows
    INVALID_SPEC = "InvalidSpec"  # the stored spec is not valid for this operator's version
    NOT_ALLOWED = "NotAllowed"  # the FineTuneJob asks for more than this installation allows
    NAME_CONFLICT = "NameConflict"  # a Job of that name belongs to somebody else
    JOB_REFUSED = "JobRefused"  # the API server refused the Job or its pod, by quota or policy
    OOM_KILLED = "OOMKilled"  # the container used more memory than its limit
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"  # attempts are used up and the last gave no reason
    STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"  # no trainer started within startupDeadlineSeconds
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # activeDeadlineSeconds of running are used up
    NO_PROGRESS = "NoProgress"  # attempts were interrupted again and again before a newer checkpoint
    OUTCOME_UNAVAILABLE = "OutcomeUnavailable"  # the Job ended but its pod's last word is gone or unreadable


class Phase(StrEnum):
    """One word for people, computed from the conditions and never read back."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Condition(Model):
    """A standard Kubernetes condition."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """Kind of condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    observed_generation: int = Field(default=0, ge=0)
    """The spec's generation that this says something about."""
    last_transition_time: Timestamp
    """When `status` last changed (RFC 3339)."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+$", max_length=64)]
    """One CamelCase word."""
    message: Annotated[str, StringConstraints(max_length=4096)] = ""
    """What, where and what to do."""


class ObservedProgress(Progress):
    """How far the run is, as the trainer last said."""

    estimated_remaining: Annotated[str, StringConstraints(max_length=32)] | None = None
    """`estimatedRemainingSeconds` for people, such as `1h12m`."""


class FineTuneJobStatus(Model):
    """What the operator saw."""

    observed_generation: int | None = Field(default=None, ge=0)
    """The spec's generation that this status is about."""
    phase: Phase | None = None
    """One word for people; tools read the conditions."""
    conditions: list[Condition] = Field(default=[], max_length=16, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })  # fmt: skip
    """`Complete` and `Failed` are terminal; `Running`, `Suspended`; `Reconciling` and `Stalled` for kstatus."""
    start_time: Timestamp | None = None
    """When the first trainer container started (RFC 3339)."""
    completion_time: Timestamp | None = None
    """When the run ended, well or not (RFC 3339)."""
    attempts: int | None = Field(default=None, ge=0)
    """Times that a trainer was started: retries, and starts after an interruption or a suspension."""
    last_attempt_time: Timestamp | None = None
    """When the trainer was last started (RFC 3339)."""
    interruptions: int | None = Field(default=None, ge=0)
    """Attempts since the last newer checkpoint that were evicted, preempted or killed before they had saved one, by
    their termination messages. The third ends the run."""
    unreported_interruptions: int | None = Field(default=None, ge=0)
    """Attempts since the last newer checkpoint whose end no node reported, so that nobody knows what they saved. The
    thirtieth ends the run."""
    active_seconds: int | None = Field(default=None, ge=0)
    """Seconds that a trainer ran, all attempts together, up to `accountedTime`."""
    gpu_seconds: int | None = Field(default=None, ge=0)
    """The same, times the GPUs held."""
    accounted_time: Timestamp | None = None
    """Up to when `activeSeconds` and `gpuSeconds` count; moves with every other change (RFC 3339)."""
    job_name: Annotated[str, StringConstraints(max_length=63)] | None = None
    """The Job that runs the trainer."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """The backend that trained."""
    progress: ObservedProgress | None = None
    """How far the run is, as the trainer last said."""
    last_checkpoint_step: int | None = Field(default=None, ge=0)
    """Optimizer step of the newest checkpoint that is whole in the store."""
    last_checkpoint_time: Timestamp | None = None
    """When that checkpoint was whole: what a preemption now would lose began then (RFC 3339)."""
    dataset: DatasetReport | None = None
    """What became of the rows."""
    result: Result | None = None
    """What was published."""
