"""The status of a FineTuneJob, which the operator writes."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_trainer.contract import CacheResult, DatasetReport, Model, Progress, Result, Stage, StepResult

Timestamp = Annotated[str, StringConstraints(max_length=64)]


class ConditionType(StrEnum):
    """Conditions of a FineTuneJob. There is no `Ready`, because a run is not a server."""

    COMPLETE = "Complete"  # terminal: a complete result is published
    FAILED = "Failed"  # terminal: there is no result and no further attempt
    CANCELLED = "Cancelled"  # terminal: spec.cancel is set and all pods have terminated
    SUSPENDED = "Suspended"  # by spec.suspend, suspendAtStep or budget, and all pods have terminated
    RUNNING = "Running"  # a trainer container runs
    RECONCILING = "Reconciling"  # kstatus: the Job does not exist yet
    STALLED = "Stalled"  # kstatus: failed, user action is required


class OperatorReason(StrEnum):
    """Reasons that the operator reports. The trainer reports its own reasons for the end of a run as `Reason`."""

    JOB_PENDING = "JobPending"  # the Job does not exist yet
    JOB_CREATED = "JobCreated"  # the Job exists
    QUEUED = "Queued"  # Kueue holds the Job until there is quota for it
    JOB_SUSPENDED = "JobSuspended"  # the Job is suspended, and neither this operator nor Kueue did it
    SUSPENDING = "Suspending"  # spec.suspend is set and a pod is saving a checkpoint
    SUSPENDED = "Suspended"  # spec.suspend is set and all pods have terminated
    BUDGET_EXHAUSTED = "BudgetExhausted"  # the run is suspended because it has used its budget
    CANCELLING = "Cancelling"  # spec.cancel is set and a pod is terminating
    CANCELLED = "Cancelled"  # spec.cancel is set and all pods have terminated
    POD_PENDING = "PodPending"  # the Job's pod has not started
    UNSCHEDULABLE = "Unschedulable"  # no node fits the pod
    IMAGE_PULL_FAILED = "ImagePullFailed"  # the node cannot pull the image
    GPU_UNAVAILABLE = "GPUUnavailable"  # no node has enough free GPUs of the requested resource
    CLAIM_NOT_FOUND = "ClaimNotFound"  # a PersistentVolumeClaim that the pod names does not exist
    SECRET_NOT_FOUND = "SecretNotFound"  # a Secret that the pod names does not exist
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"  # a ConfigMap that the pod names does not exist
    KEY_NOT_FOUND = "KeyNotFound"  # a Secret or ConfigMap lacks a key that the pod mounts
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"  # the container cannot be created or a volume cannot be mounted
    POD_RUNNING = "PodRunning"  # a trainer container runs
    FINISHING = "Finishing"  # the last pod has ended, and the Job is about to complete or fail
    PROGRESS_STALLED = "ProgressStalled"  # a trainer container runs and has reported no progress for a long time
    NODE_LOST = "NodeLost"  # a pod is stuck terminating because its node is unreachable
    RETRYING = "Retrying"  # an attempt failed and is retried
    INVALID_SPEC = "InvalidSpec"  # the stored spec is not valid for this operator's version
    NOT_ALLOWED = "NotAllowed"  # the FineTuneJob asks for more than this installation allows
    NAME_CONFLICT = "NameConflict"  # a Job of that name has another owner
    JOB_REFUSED = "JobRefused"  # the API server rejected the Job or its pod, by quota or policy
    OOM_KILLED = "OOMKilled"  # the container used more memory than its limit
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"  # no retries are left and the last attempt gave no reason
    STARTUP_DEADLINE_EXCEEDED = "StartupDeadlineExceeded"  # no trainer started within startupDeadlineSeconds
    DEADLINE_EXCEEDED = "DeadlineExceeded"  # the run exceeded activeDeadlineSeconds
    NO_PROGRESS = "NoProgress"  # attempts were repeatedly interrupted before they saved a new checkpoint
    OUTCOME_UNAVAILABLE = "OutcomeUnavailable"  # the Job ended; its termination message is missing or unreadable


class EventReason(StrEnum):
    """Reasons of Events that are not about a condition."""

    CHECKPOINTS_CLEANED = "CheckpointsCleaned"  # the checkpoints of the ended run were deleted
    FOREIGN_JOB = "ForeignJob"  # the Job belongs to another installation of the operator
    CLEANING_FAILED = "CleaningFailed"  # the checkpoints of the ended run could not be deleted; it is retried


class Phase(StrEnum):
    """A one-word summary for users and metrics, computed from the conditions. No decision reads it."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


class Condition(Model):
    """Condition is a standard Kubernetes condition."""

    type: Annotated[str, StringConstraints(max_length=64)]
    """type is the type of the condition."""
    status: Literal["True", "False", "Unknown"]
    """status is True if the condition holds, False if it does not, and Unknown otherwise."""
    observed_generation: int = Field(default=0, ge=0)
    """observedGeneration is the generation of the spec that the condition is based on."""
    last_transition_time: Timestamp
    """lastTransitionTime is the time when `status` last changed (RFC 3339)."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]+$", max_length=64)]
    """reason is the reason for the status, in CamelCase."""
    message: Annotated[str, StringConstraints(max_length=4096)] = ""
    """message says what happened, where, and what to do."""


class ObservedProgress(Progress):
    """ObservedProgress is the progress of the run as last reported by the trainer."""

    stage: Stage | None = None  # type: ignore[assignment]  # unset if the current attempt has reported none
    """stage is the stage of the current attempt. It is unset until the attempt has reported one."""
    completed: Annotated[str, StringConstraints(max_length=8)] | None = None
    """completed is `percentage` in readable form, such as `57%`."""
    estimated_remaining: Annotated[str, StringConstraints(max_length=32)] | None = None
    """estimatedRemaining is `estimatedRemainingSeconds` in readable form, such as `1h12m`. After the training it is
    what the run still does: `evaluating`, `exporting` or `uploading`."""


class FineTuneJobStatus(Model):
    """FineTuneJobStatus is the observed state of a FineTuneJob."""

    observed_generation: int | None = Field(default=None, ge=0)
    """observedGeneration is the generation of the spec that this status is based on."""
    phase: Phase | None = None
    """phase is a one-word summary for users. Tools should use the conditions."""
    reason: Annotated[str, StringConstraints(max_length=64)] | None = None
    """reason is the reason of the condition that `phase` is based on. Field selectors can select it, like `phase`."""
    conditions: list[Condition] = Field(default=[], max_length=16, json_schema_extra={
        "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
    })  # fmt: skip
    """conditions are the latest observations of the run. `Complete`, `Failed` and `Cancelled` are terminal, `Running`
    and `Suspended` show its current state, and `Reconciling` and `Stalled` are for kstatus. One condition has the
    message, the others refer to it."""
    start_time: Timestamp | None = None
    """startTime is the time when the first trainer container started (RFC 3339)."""
    completion_time: Timestamp | None = None
    """completionTime is the time when the run completed, failed or was cancelled (RFC 3339)."""
    duration: Annotated[str, StringConstraints(max_length=32)] | None = None
    """duration is the time from `startTime` to `completionTime`, or to the last change of the status of a run that has
    not ended, in readable form, such as `3h5m`."""
    attempts: int | None = Field(default=None, ge=0)
    """attempts is the number of times that a trainer was started, including retries and restarts after an interruption
    or a suspension."""
    last_attempt_time: Timestamp | None = None
    """lastAttemptTime is the time when the trainer was last started (RFC 3339)."""
    last_attempt_creation_time: Timestamp | None = None
    """lastAttemptCreationTime is the time when the pod of the last attempt was created, by the clock of the API server
    (RFC 3339). Attempts are distinguished by it, because the clocks of their nodes may differ."""
    interruptions: int | None = Field(default=None, ge=0)
    """interruptions is the number of attempts since the latest checkpoint that were evicted, preempted or killed before
    they saved another one, according to their termination messages. `spec.maxInterruptions` limits it."""
    unreported_interruptions: int | None = Field(default=None, ge=0)
    """unreportedInterruptions is the number of attempts since the latest checkpoint whose termination was never
    reported by their node, so that it is unknown whether they saved another one. Ten times `spec.maxInterruptions`
    limits it."""
    active_seconds: int | None = Field(default=None, ge=0)
    """activeSeconds is the number of seconds that a trainer ran, in all attempts together, up to `accountedTime`."""
    gpu_seconds: int | None = Field(default=None, ge=0)
    """gpuSeconds is the number of GPU-seconds of all attempts together: the seconds that a trainer ran, multiplied by
    the number of GPUs that it held, up to `accountedTime`."""
    accounted_time: Timestamp | None = None
    """accountedTime is the time up to which `activeSeconds` and `gpuSeconds` are counted (RFC 3339). It is updated with
    every other change of the status."""
    job_name: Annotated[str, StringConstraints(max_length=63)] | None = None
    """jobName is the name of the Job that runs the trainer."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """backend is the backend that was used."""
    progress: ObservedProgress | None = None
    """progress is the progress of the run as last reported by the trainer."""
    last_checkpoint_step: int | None = Field(default=None, ge=0)
    """lastCheckpointStep is the optimizer step of the latest complete checkpoint in S3."""
    last_checkpoint_time: Timestamp | None = None
    """lastCheckpointTime is the time when the latest checkpoint was completed (RFC 3339). Work since then is lost on
    preemption."""
    step_result: StepResult | None = None
    """stepResult is the evaluation at the last `spec.suspendAtStep` that the training has reached."""
    model_cache: CacheResult | None = None
    """modelCache is Hit if the base model was read from the claim `compute.modelCacheClaimName`, Filled if it was
    downloaded into it, and Miss if it was downloaded without it."""
    dataset: DatasetReport | None = None
    """dataset counts the rows of the dataset by what happened to them: rows = kept + validation + test + the sum of
    rejected."""
    result: Result | None = None
    """result describes the published result."""
    checkpoints_cleaned_time: Timestamp | None = None
    """checkpointsCleanedTime is the time when the checkpoints of a failed or cancelled run were deleted (RFC 3339)."""
    log_uri: Annotated[str, StringConstraints(max_length=1100)] | None = Field(default=None, alias="logURI")
    """logURI is the S3 URI of the log of the last attempt that stored one. The log of a failed run is below `.failed/`
    of the output, beside `findings.json`, that of a rejected adapter below `.rejected/`."""
