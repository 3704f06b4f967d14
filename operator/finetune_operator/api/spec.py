"""What a person writes into a FineTuneJob. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.status import FineTuneJobStatus
from finetune_trainer.contract import (
    TRACKING_RULES,
    TRAINER_RULES,
    Model,
    ModelSource,
    ObjectName,
    SecretRef,
    Storage,
    Tracking,
    TrainerConfig,
    rules,
)

GROUP = "finetune.dev"
VERSION = "v1alpha1"
PLURAL = "finetunejobs"
KIND = "FineTuneJob"
API_VERSION = f"{GROUP}/{VERSION}"


class ConfigMapKeyRef(Model):
    """A key of a ConfigMap in the FineTuneJob's own namespace."""

    name: ObjectName
    """Name of the ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=253)] = "ca.crt"
    """Key that holds the value."""


class ModelSpec(ModelSource):
    """The base model to start from."""

    token_secret_ref: SecretRef | None = None
    """Secret with the hub's token under the key `HF_TOKEN`, for gated and private `hf://` models."""


class StorageSpec(Storage):
    """How to reach S3. Without it: AWS, with the pod's own identity."""

    credentials_secret_ref: SecretRef | None = None
    """Secret with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, optionally, `AWS_SESSION_TOKEN`. Absent
    means the identity of the pod's service account."""
    ca_config_map_ref: ConfigMapKeyRef | None = None
    """ConfigMap with the PEM certificates that the endpoint's certificate is checked against."""


class TrackingSpec(Tracking):
    """Where losses and metrics can be followed and compared with other runs'."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *TRACKING_RULES,
            (
                "self.tool != 'tensorboard' || !has(self.credentialsSecretRef)",
                "tool tensorboard needs no credentialsSecretRef",
            ),
            ("self.tool != 'wandb' || has(self.credentialsSecretRef)", "tool wandb needs credentialsSecretRef"),
        )
    )

    credentials_secret_ref: SecretRef | None = None
    """Secret with the server's credentials. `mlflow`: the key `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME`
    and `MLFLOW_TRACKING_PASSWORD`; absent means that it asks for none. `wandb`: the key `WANDB_API_KEY`."""


_YEAR_SECONDS = 365 * 24 * 3600
_IMMUTABLE_MESSAGE = "is immutable; make a new FineTuneJob for a new run"


class FineTuneJobSpec(TrainerConfig):
    """What to fine-tune, on which data, where the result goes, and the pod that does it."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *TRAINER_RULES,
            ("self.model == oldSelf.model", f"model {_IMMUTABLE_MESSAGE}"),
            ("self.dataset == oldSelf.dataset", f"dataset {_IMMUTABLE_MESSAGE}"),
            ("self.training == oldSelf.training", f"training {_IMMUTABLE_MESSAGE}"),
            ("self.evaluation == oldSelf.evaluation", f"evaluation {_IMMUTABLE_MESSAGE}"),
            ("self.output == oldSelf.output", f"output {_IMMUTABLE_MESSAGE}"),
            ("self.storage == oldSelf.storage", f"storage {_IMMUTABLE_MESSAGE}"),
            (
                "has(self.tracking) == has(oldSelf.tracking) "
                "&& (!has(self.tracking) || self.tracking == oldSelf.tracking)",
                f"tracking {_IMMUTABLE_MESSAGE}",
            ),
            (
                "!has(self.model.tokenSecretRef) || self.model.uri.startsWith('hf://')",
                "model.tokenSecretRef applies to hf:// models only",
            ),
            (
                "self.training.backend != 'unsloth' || (self.compute.nodes == 1 && self.compute.gpusPerNode <= 1)",
                "backend unsloth trains on one GPU; use transformers or auto for several GPUs or nodes",
            ),
        )
    )

    model: ModelSpec
    """The base model to start from."""
    storage: StorageSpec = StorageSpec()
    """How to reach S3."""
    tracking: TrackingSpec | None = None
    """Where losses and metrics can be followed and compared with other runs'. Absent means nowhere but in the status
    and the report."""
    compute: ComputeSpec = ComputeSpec()
    """The pod that trains."""
    suspend: bool = False
    """Whether to stop: the pods save a checkpoint and leave, and the run goes on from it when this is false again."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """Attempts after the first that failed for a passing reason. Evictions do not count, three in a row without a newer
    checkpoint end the run; permanent errors are not retried. After a suspension the count starts anew."""
    startup_deadline_seconds: int | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """Seconds that may pass until a trainer runs, from the start of the Job; a Job that a queue holds has not started.
    Absent means no limit."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """Seconds that trainers may run, all attempts together. Waiting and suspension do not count. Absent means no
    limit."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=_YEAR_SECONDS)
    """Seconds after which a finished FineTuneJob is deleted. Absent keeps it. GitOps tools create a deleted one anew;
    it then finds its result and ends without training."""


class ObjectMeta(Model):
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

    metadata: ObjectMeta
    """Standard object's metadata."""
    spec: FineTuneJobSpec
    """What to do."""
    status: FineTuneJobStatus | None = None
    """What the operator saw."""
