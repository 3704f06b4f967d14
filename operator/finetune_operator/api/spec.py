"""The spec of a FineTuneJob, which users write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_operator.api.compute import ComputeSpec
from finetune_operator.api.status import FineTuneJobStatus
from finetune_trainer.contract import (
    TRACKING_RULES,
    TRAINER_RULES,
    Dataset,
    Endpoint,
    Evaluation,
    Model,
    ModelSource,
    ObjectName,
    SecretRef,
    Storage,
    Tracking,
    TrainerConfig,
    cel_rules,
)

GROUP = "finetune.dev"
VERSION = "v1alpha1"
PLURAL = "finetunejobs"
KIND = "FineTuneJob"
API_VERSION = f"{GROUP}/{VERSION}"


class ConfigMapKeyRef(Model):
    """ConfigMapKeyRef is a reference to a key of a ConfigMap in the namespace of the FineTuneJob."""

    name: ObjectName
    """name is the name of the ConfigMap."""
    key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=253)] = "ca.crt"
    """key is the key of the value in the ConfigMap. Defaults to ca.crt."""


class ModelSpec(ModelSource):
    """ModelSpec is the base model to fine-tune, with the credentials to read it."""

    token_secret_ref: SecretRef | None = None
    """tokenSecretRef refers to the Secret with the token of the Hugging Face hub, under the key `HF_TOKEN`, for gated
    and private `hf://` models."""


_ANY_HUB_DATA = (
    "self.dataset.sources.exists(each, each.uri.startsWith('hf://')) "
    "|| (has(self.dataset.validation) && has(self.dataset.validation.sources) "
    "&& self.dataset.validation.sources.exists(each, each.uri.startsWith('hf://'))) "
    "|| (has(self.evaluation.test) && self.evaluation.test.sources.exists(each, each.uri.startsWith('hf://')))"
)
_NO_LOCAL_DATA = (
    "self.sources.all(each, !each.uri.startsWith('file://')) "
    "&& (!has(self.validation) || !has(self.validation.sources) "
    "|| self.validation.sources.all(each, !each.uri.startsWith('file://')))"
)


class DatasetSpec(Dataset):
    """DatasetSpec describes the training data and its preparation, with the credentials to read it."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (_NO_LOCAL_DATA, "file:// works only with finetune-trainer by hand; use s3://, hf:// or pvc://"),
        )
    )

    token_secret_ref: SecretRef | None = None
    """tokenSecretRef refers to the Secret with the token of the Hugging Face hub, under the key `HF_TOKEN`, for gated
    and private `hf://` datasets. If unset, `model.tokenSecretRef` is used."""


class StorageSpec(Storage):
    """StorageSpec configures the access to S3. By default this is AWS S3 with the identity of the pod."""

    credentials_secret_ref: SecretRef | None = None
    """credentialsSecretRef refers to the Secret with the keys `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and,
    optionally, `AWS_SESSION_TOKEN`. If unset, the identity of the pod's service account is used."""
    ca_config_map_ref: ConfigMapKeyRef | None = None
    """caConfigMapRef refers to the ConfigMap with the PEM certificates of the authorities that the endpoint's
    certificate is verified with."""


class TrackingSpec(Tracking):
    """TrackingSpec configures an experiment tracker that records losses and metrics."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            *TRACKING_RULES,
            (
                "self.tool != 'tensorboard' || !has(self.credentialsSecretRef)",
                "tool tensorboard does not use credentialsSecretRef; remove it",
            ),
            ("self.tool != 'wandb' || has(self.credentialsSecretRef)", "tool wandb needs credentialsSecretRef"),
        )
    )

    credentials_secret_ref: SecretRef | None = None
    """credentialsSecretRef refers to the Secret with the credentials of the tracking server. For `mlflow`, it contains
    the key `MLFLOW_TRACKING_TOKEN`, or the keys `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`; if unset,
    the server is used without credentials. For `wandb`, it contains the key `WANDB_API_KEY`."""


class EndpointSpec(Endpoint):
    """EndpointSpec is a server that graders of the kinds `judge` and `http` call. Prompts and answers leave the pod for
    it."""

    credentials_secret_ref: SecretRef | None = None
    """credentialsSecretRef refers to the Secret with the key of the server. Its key `api-key` is sent as a bearer
    token. If unset, no token is sent."""


class EvaluationSpec(Evaluation):
    """EvaluationSpec configures how the fine-tuned model is compared with the base model before it is published."""

    endpoints: Sequence[EndpointSpec] = Field(
        default=[],
        max_length=4,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    """endpoints are the servers that graders of the kinds `judge` and `http` call. They are not a part of the run's
    identity: the same run can use another server. Defaults to none."""


_YEAR_SECONDS = 365 * 24 * 3600
_MAX_GPU_SECONDS = 2**53 - 1  # integers above are not exact in JSON parsers of other languages
_IMMUTABLE_MESSAGE = "is immutable; create a new FineTuneJob for a new run"


class Budget(Model):
    """Budget limits what the trainers of a run may use. A run at its limit is suspended, not failed."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                "has(self.gpuSeconds) || has(self.activeSeconds)",
                "budget needs gpuSeconds, activeSeconds or both; remove it for no limit",
            )
        )
    )

    gpu_seconds: int | None = Field(default=None, ge=1, le=_MAX_GPU_SECONDS)
    """gpuSeconds is the maximum of `status.gpuSeconds`: the seconds that trainers run, multiplied by their GPUs."""
    active_seconds: int | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """activeSeconds is the maximum of `status.activeSeconds`: the seconds that trainers run, in all attempts
    together."""


RUN_RULES = (
    *TRAINER_RULES,
    (
        "!has(self.model.tokenSecretRef) || self.model.uri.startsWith('hf://')",
        "model.tokenSecretRef applies to hf:// models only",
    ),
    (
        f"!has(self.dataset.tokenSecretRef) || {_ANY_HUB_DATA}",
        "dataset.tokenSecretRef applies to hf:// data only",
    ),
    (
        "!self.model.uri.startsWith('file://')",
        "a model at file:// works only with finetune-trainer by hand; use s3://, hf:// or pvc://",
    ),
    (
        "!has(self.evaluation.test) || self.evaluation.test.sources.all(each, !each.uri.startsWith('file://'))",
        "evaluation.test at file:// works only with finetune-trainer by hand; use s3://, hf:// or pvc://",
    ),
    (
        "self.training.backend != 'unsloth' || (self.compute.nodes == 1 && self.compute.gpusPerNode <= 1)",
        "backend unsloth trains on one GPU; use transformers or auto for several GPUs or nodes",
    ),
    (
        "!has(self.training.globalBatchSize) || self.training.globalBatchSize % (self.training.batchSize"
        " * self.compute.nodes * (self.compute.gpusPerNode > 0 ? self.compute.gpusPerNode : 1)) == 0",
        "training.globalBatchSize must be a multiple of training.batchSize x compute.nodes x compute.gpusPerNode",
    ),
    (
        "self.compute.sharding == 'none' || self.training.backend != 'unsloth'",
        "compute.sharding full needs training.backend transformers or auto",
    ),
    (
        "self.compute.sharding == 'none' || self.training.kernels == 'standard'",
        "compute.sharding full needs training.kernels standard",
    ),
    (
        "self.compute.sharding == 'none' || self.training.method in ['sft', 'dpo']",
        "compute.sharding full needs training.method sft or dpo",
    ),
    (
        "!(self.training.method in ['grpo', 'rloo']) || self.training.batchSize * self.training.gradientAccumulation"
        " * self.compute.nodes * (self.compute.gpusPerNode > 0 ? self.compute.gpusPerNode : 1)"
        " % (has(self.training.rollout) ? self.training.rollout.generations : 8) == 0",
        "training.batchSize x gradientAccumulation x compute.nodes x compute.gpusPerNode must be a multiple of "
        "training.rollout.generations",
    ),
    (
        "self.compute.sharding == 'none' || self.model.quantization == 'none'",
        "compute.sharding full needs model.quantization none; weights in int8 or nf4 cannot be sharded",
    ),
    (
        "self.compute.sharding == 'none' || !self.output.merged",
        "compute.sharding full does not support output.merged; servers can load the adapter",
    ),
    (
        "self.compute.sharding == 'none' || (self.training.lora.variant != 'dora'"
        " && self.training.lora.targetParameters.size() == 0 && self.training.lora.trainableTokens.size() == 0)",
        "compute.sharding full needs lora.variant lora or rslora, and no lora.targetParameters or lora.trainableTokens",
    ),
)
"""Rules that span several sections of a run in the cluster. They apply to `RunSpec` and its subclasses."""


class RunSpec(TrainerConfig):
    """RunSpec is the part of a FineTuneJob's spec that a FineTuneSchedule or a FineTuneSweep has in its template."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*RUN_RULES))

    model: ModelSpec
    """model describes the base model to fine-tune."""
    dataset: DatasetSpec
    """dataset describes the training data."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """evaluation configures how the fine-tuned model is compared with the base model before it is published."""
    storage: StorageSpec = StorageSpec()
    """storage configures the access to S3. By default this is AWS S3 with the identity of the pod."""
    tracking: TrackingSpec | None = None
    """tracking configures an experiment tracker that records losses and metrics. If unset, they are available in the
    status and in the report only."""
    compute: ComputeSpec = ComputeSpec()
    """compute configures the pods of the run. It can be changed only while the run is suspended."""
    budget: Budget | None = None
    """budget limits what the trainers of the run may use. At the limit, they save a checkpoint and the run is
    suspended; raise the limit to continue. If unset, there is no limit."""
    backoff_limit: int = Field(default=3, ge=0, le=100)
    """backoffLimit is the number of retries after transient errors. Evictions are not counted; `maxInterruptions`
    limits those. Permanent errors are not retried. The count restarts after a suspension. Defaults to 3."""
    max_interruptions: int = Field(default=3, ge=1, le=1000)
    """maxInterruptions is the number of consecutive attempts that may be evicted, preempted or killed before they have
    saved a new checkpoint. The last of them fails the run. Attempts whose end was never reported by their node count a
    tenth. Defaults to 3."""
    startup_deadline_seconds: int | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """startupDeadlineSeconds is the maximum number of seconds from the start of the Job until a trainer runs. The time
    that a queue holds the Job is not counted. If unset, there is no limit."""
    active_deadline_seconds: int | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """activeDeadlineSeconds is the maximum number of seconds that trainers may run, in all attempts together. The time
    that the run waits or is suspended is not counted. If unset, there is no limit."""


class FineTuneJobSpec(RunSpec):
    """FineTuneJobSpec is the specification of a fine-tuning run: its model, data, training, output and pods."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            *RUN_RULES,
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
                "has(self.managedBy) == has(oldSelf.managedBy) "
                "&& (!has(self.managedBy) || self.managedBy == oldSelf.managedBy)",
                f"managedBy {_IMMUTABLE_MESSAGE}",
            ),
            ("!oldSelf.cancel || self.cancel", "cancel cannot be undone; create a new FineTuneJob"),
            (
                "!has(self.suspendAtStep) || !has(self.training.crossValidation)",
                "suspendAtStep cannot be used with training.crossValidation, whose steps belong to several trainings",
            ),
        )
    )

    suspend: bool = False
    """suspend suspends the run: the pods save a checkpoint and terminate. Set it to false to resume from the
    checkpoint. Defaults to false."""
    cancel: bool = False
    """cancel ends the run for good as `Cancelled`: its pods are terminated, no new ones are created, and no result is
    published. Cancelling cannot be undone. Defaults to false."""
    suspend_at_step: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """suspendAtStep is the optimizer step at which the run is suspended: the trainer evaluates the model, saves a
    checkpoint and terminates. `status.stepResult` then contains the loss. Raise or remove it to continue. A change
    while a trainer runs restarts it from a checkpoint. If unset, or if the training has fewer steps, the run is not
    suspended."""
    ttl_seconds_after_finished: int | None = Field(default=None, ge=0, le=_YEAR_SECONDS)
    """ttlSecondsAfterFinished is the number of seconds after which a finished FineTuneJob is deleted. If unset, it is
    kept. A GitOps tool creates a deleted FineTuneJob again; it then finds its result and completes without training."""
    managed_by: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9._~/-]+$", max_length=63)]
        | None
    ) = None
    """managedBy is the controller of this FineTuneJob, as a domain and a path. If it is set and is not
    `finetune.dev/finetune-operator`, the operator ignores the FineTuneJob."""


class ObjectMeta(Model):
    """The fields of an object's metadata that the operator reads."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str
    uid: str
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default={})


class FineTuneJob(Model):
    """FineTuneJob fine-tunes a language model with LoRA on data in S3 and publishes the adapter to S3."""

    model_config = ConfigDict(extra="ignore")

    metadata: ObjectMeta
    """metadata is the standard metadata of the object."""
    spec: FineTuneJobSpec
    """spec is the desired run: its model, data, training, output and pods."""
    status: FineTuneJobStatus | None = None
    """status is the observed state of the run."""
