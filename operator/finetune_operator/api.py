"""The FineTuneJob API: spec, status, conditions and their reasons. Pure; the CRD is generated from it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.compute import Compute, ObjectName, SecretRef
from finetune_trainer.contract import (
    TRAINER_RULES,
    DatasetReport,
    Model,
    ModelSource,
    Progress,
    Result,
    Storage,
    TrainerConfig,
    rules,
)

GROUP = "finetune.dev"
VERSION = "v1alpha1"
PLURAL = "finetunejobs"
KIND = "FineTuneJob"
API_VERSION = f"{GROUP}/{VERSION}"
NAME_MAX_LENGTH = 52
"""Leaves room for the suffixes of the Job's pods within a DNS label."""


class ConfigMapKeyRef(Model):
    """A key of a ConfigMap in the FineTuneJob's own namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=253)] = "ca.crt"
    """Key that holds the value."""


class ModelSpec(ModelSource):
    """The base model to start from."""

    token_secret_ref: SecretRef | None = None
    """Secret with the hub's token under the key `token`, for gated and private `hf://` models."""


class StorageSpec(Storage):
    """How to reach S3. Without it: AWS, with the pod's own identity."""

    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, optionally, `AWS_SESSION_TOKEN`. Absent
    means the identity of the pod's service account."""
    ca_config_map_ref: ConfigMapKeyRef | None = None
    """ConfigMap with the PEM certificates that the endpoint's certificate is checked against."""


_IMMUTABLE = "is immutable; make a new FineTuneJob for a new run"


class FineTuneJobSpec(TrainerConfig):
    """What to fine-tune, on which data, where the result goes, and the pod that does it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *TRAINER_RULES,
            ("self.model == oldSelf.model", f"model {_IMMUTABLE}"),
            ("self.dataset == oldSelf.dataset", f"dataset {_IMMUTABLE}"),
            ("self.training == oldSelf.training", f"training {_IMMUTABLE}"),
            ("self.output == oldSelf.output", f"output {_IMMUTABLE}"),
            ("self.storage == oldSelf.storage", f"storage {_IMMUTABLE}"),
            ("self.compute == oldSelf.compute", f"compute {_IMMUTABLE}"),
            ("self.backoffLimit == oldSelf.backoffLimit", f"backoffLimit {_IMMUTABLE}"),
            (
                "!has(self.model.tokenSecretRef) || self.model.uri.startsWith('hf://')",
                "model.tokenSecretRef applies to hf:// models only",
            ),
        )
    )

    model: ModelSpec
    """The base model to start from."""
    storage: StorageSpec = StorageSpec()
    """How to reach S3."""
    compute: Compute = Compute()
    """The pod that trains."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Attempts after the first that failed for a passing reason. Evictions do not count; permanent errors are not
    retried."""


class ConditionType(StrEnum):
    """Conditions of a FineTuneJob. There is no `Ready`: a run is not a server."""

    COMPLETE = "Complete"  # terminal: a whole result is published
    FAILED = "Failed"  # terminal: no result, and no attempt will follow
    RUNNING = "Running"  # a trainer container runs
    RECONCILING = "Reconciling"  # kstatus: the Job does not exist yet
    STALLED = "Stalled"  # kstatus: failed, a person must act


class OperatorReason(StrEnum):
    """Reasons that the operator gives by itself; those of a run's end are the trainer's `Reason`."""

    JOB_PENDING = "JobPending"  # the Job does not exist yet
    JOB_CREATED = "JobCreated"  # the Job exists
    QUEUED = "Queued"  # the Job is suspended, by Kueue until there is quota for it
    POD_PENDING = "PodPending"  # the Job's pod has not started
    UNSCHEDULABLE = "Unschedulable"  # no node takes the pod
    IMAGE_PULL_FAILED = "ImagePullFailed"  # the node cannot get the image
    CONTAINER_CONFIG_ERROR = "ContainerConfigError"  # a Secret, ConfigMap or claim that the pod names is missing
    POD_RUNNING = "PodRunning"  # a trainer container runs
    RETRYING = "Retrying"  # an attempt failed, another follows
    INVALID_SPEC = "InvalidSpec"  # the stored spec is not valid for this operator's version
    NAME_CONFLICT = "NameConflict"  # a Job of that name belongs to somebody else
    JOB_REFUSED = "JobRefused"  # the API server refused the Job or its pod, by quota or policy
    OOM_KILLED = "OOMKilled"  # the container used more memory than its limit
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"  # attempts are used up and the last gave no reason
    OUTCOME_UNAVAILABLE = "OutcomeUnavailable"  # the Job ended but its pod's last word is gone or unreadable


class Phase(StrEnum):
    """One word for people, computed from the conditions and never read back."""

    PENDING = "Pending"
    RUNNING = "Running"
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
    last_transition_time: Annotated[str, StringConstraints(max_length=64)]
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
    """`Complete` and `Failed` are terminal; `Running`; `Reconciling` and `Stalled` for kstatus."""
    start_time: Annotated[str, StringConstraints(max_length=64)] | None = None
    """When the first trainer container started (RFC 3339)."""
    completion_time: Annotated[str, StringConstraints(max_length=64)] | None = None
    """When the run ended, well or not (RFC 3339)."""
    attempts: int | None = Field(default=None, ge=0)
    """Pods started so far, as far as the cluster still knows of them."""
    job_name: Annotated[str, StringConstraints(max_length=63)] | None = None
    """The Job that runs the trainer."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """The backend that trained."""
    progress: ObservedProgress | None = None
    """How far the run is, as the trainer last said."""
    dataset: DatasetReport | None = None
    """What became of the rows."""
    result: Result | None = None
    """What was published."""


class Metadata(Model):
    """What the operator reads of an object's metadata."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str
    uid: str
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default={})


class FineTuneJob(Model):
    """Fine-tunes a language model: data from S3, LoRA, the adapter back in S3."""

    model_config = ConfigDict(extra="ignore")

    metadata: Metadata
    """Standard object's metadata."""
    spec: FineTuneJobSpec
    """What to do."""
    status: FineTuneJobStatus | None = None
    """What the operator saw."""
