"""All that operator and trainer say to each other: `TrainerConfig` in, `Progress` and `Outcome` out.

The CRD is generated from these classes, so a field's docstring is what `kubectl explain` prints, its limits are what
the API server enforces, and its default is what a stored object shows. Needs pydantic and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

CONFIG_ENV = "FINETUNE_CONFIG"
"""The environment variable that carries a `TrainerConfig` as JSON."""
OUTCOME_PATH_ENV = "FINETUNE_OUTCOME_PATH"
"""Where the trainer writes its `Outcome`; in a pod the container's termination message."""
SCRATCH_ENV = "FINETUNE_SCRATCH"
"""The one folder that the trainer writes to."""
S3_CREDENTIALS_DIR_ENV = "FINETUNE_S3_CREDENTIALS_DIR"
"""A folder with the files of `S3_CREDENTIALS_KEYS`; unset means the pod's or the workstation's own identity."""
S3_CREDENTIALS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Keys of a credentials Secret; the session token is optional."""
HUB_TOKEN_FILE_ENV = "FINETUNE_HUB_TOKEN_FILE"
"""A file that holds the hub's token."""
HUB_TOKEN_KEY = "token"
"""The key of a hub token Secret."""
CA_BUNDLE_ENV = "AWS_CA_BUNDLE"
"""A PEM file of certificate authorities that the storage endpoint is checked against; botocore's own name."""
CLAIMS_DIR_ENV = "FINETUNE_CLAIMS_DIR"
"""The folder below which `pvc://claim/path` is found as `claim/path`."""
PROGRESS_PORT = 8080
"""The pod port that serves `GET /progress`."""
OUTCOME_MAX_BYTES = 4096
"""Kubernetes keeps this much of a termination message and drops the rest."""

CLUSTER_ONLY_FIELDS = (
    "compute",
    "backoffLimit",
    "model.tokenSecretRef",
    "storage.credentialsSecretRef",
    "storage.caConfigMapRef",
)
"""Fields of a FineTuneJob's spec that only a cluster can honour; the trainer run by hand sets them aside."""


def rules(*pairs: tuple[str, str]) -> dict[str, Any]:
    """CEL rules for a model's schema, each a (rule, message) pair."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in pairs]}


_NO_PARENT = ("!self.uri.contains('/../') && !self.uri.endsWith('/..')", "uri must not contain '..'")


class Model(BaseModel):
    """Base of every API type: camelCase outside, unknown fields refused, never changed once made."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    def to_json(self) -> dict[str, Any]:
        """The object as it is stored: camelCase, absent fields absent."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


S3Uri = Annotated[
    str, StringConstraints(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\\]+$", max_length=1024)
]
ModelUri = Annotated[
    str,
    StringConstraints(
        pattern=(
            r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\\]+"
            r"|hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
            r"|pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[^\x00-\x1f\\]*)?)$"
        ),
        max_length=1024,
    ),
]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$", min_length=1, max_length=128)]


class ModelSource(Model):
    """The base model to start from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.revision) || self.uri.startsWith('hf://')", "revision applies to hf:// models only"),
            _NO_PARENT,
        )
    )

    uri: ModelUri
    """Where the model lies: `s3://bucket/prefix`, `hf://organisation/name` or `pvc://claim/path`. It holds
    `config.json`, safetensors weights and tokenizer files."""
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=255)] | None = None
    """Branch, tag or commit of an `hf://` model; the commit that it named at the start is recorded in the result.
    Absent means `main`."""
    max_length: int = Field(default=2048, ge=16, le=1_048_576)
    """Longest example in tokens. Longer ones are left out of training and counted as `overlength`."""


class DataSource(Model):
    """One place that rows are read from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            _NO_PARENT,
        )
    )

    uri: S3Uri
    """An object (`s3://bucket/key.jsonl`), a prefix that ends in `/`, or a glob (`s3://bucket/data/**/*.jsonl`)."""
    format: Literal["auto", "messages", "promptCompletion"] = "auto"
    """`messages`: each row has a `messages` list of `{role, content}`. `promptCompletion`: each row has `prompt` and
    `completion`. `auto`: told by the keys of each object's first row."""
    limit: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Read at most this many rows, in the order of keys and lines. Absent means all."""


class Dataset(Model):
    """What to train on."""

    sources: list[DataSource] = Field(min_length=1, max_length=32)
    """Read in this order."""


class Lora(Model):
    """Low-rank adaptation, in PEFT's terms."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "self.targetModules.size() == 1 || !('all-linear' in self.targetModules)",
                "targetModules is either ['all-linear'] or a list of module names",
            )
        )
    )

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank `r` of the update matrices."""
    alpha: float = Field(default=32, gt=0, le=65536)
    """Scaling: the update is multiplied by alpha / rank."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Dropout on the adapter's input, against overfitting."""
    target_modules: list[ModuleName] = Field(default=["all-linear"], min_length=1, max_length=64)
    """Names of the modules that get an adapter, or `all-linear` for every linear layer but the output head."""


class Training(Model):
    """How to train."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("has(self.epochs) != has(self.maxSteps)", "exactly one of epochs and maxSteps must be set"),
        )
    )

    method: Literal["sft"] = "sft"
    """`sft`: supervised fine-tuning."""
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    """`unsloth`: Unsloth's kernels. `transformers`: plain transformers with PEFT. `auto`: Unsloth where there is a GPU
    and it is installed, else transformers. Both train the same tokens with TRL's `SFTTrainer`."""
    epochs: float | None = Field(default=None, gt=0, le=1000)
    """Passes over the data. Exactly one of `epochs` and `maxSteps`."""
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps. Exactly one of `epochs` and `maxSteps`."""
    batch_size: int = Field(default=2, ge=1, le=1024)
    """Examples per device and forward pass."""
    gradient_accumulation: int = Field(default=4, ge=1, le=1024)
    """Forward passes per optimizer step; the loss is averaged over all their tokens."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    """Peak learning rate."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Part of all steps in which the learning rate rises from zero."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """AdamW's weight decay, against overfitting."""
    max_grad_norm: float = Field(default=1, gt=0, le=1000)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Number format of the base model and its activations. `auto`: bf16 on a GPU that has it, fp16 on one that has
    not, fp32 on a CPU."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""
    loss: Literal["completion", "all"] = "completion"
    """Which tokens are learnt: only the assistant's (the completion's), or all."""
    seed: int = Field(default=42, ge=0, le=2**31 - 1)
    """Seed of the adapter's start, the order of rows and dropout."""
    lora: Lora = Lora()
    """The adapter."""


class Output(Model):
    """Where the result goes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!self.uri.contains('*') && !self.uri.contains('?')", "uri must not contain wildcards"),
            _NO_PARENT,
        )
    )

    uri: S3Uri
    """The prefix that the adapter will lie under, flat, known before the run. `{name}` and `{namespace}` stand for the
    FineTuneJob's own. An existing result there is never overwritten."""


class Storage(Model):
    """How to reach S3. Without it: AWS, with the pod's own identity."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+/?$", max_length=512)] | None = None
    """URL of an S3-compatible store. Absent means AWS."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Region. Absent means the environment's, or us-east-1."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """`path`: endpoint/bucket/key. `virtual`: bucket.endpoint/key. `auto`: virtual on AWS, path elsewhere."""
    checksums: Literal["auto", "whenRequired"] = "auto"
    """`whenRequired`: no checksum headers beyond what S3 demands, for older S3-compatible stores."""


def _without_cluster_only(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in spec.items() if prefix + key not in CLUSTER_ONLY_FIELDS}
    return {
        key: _without_cluster_only(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in kept.items()
    }


class TrainerConfig(Model):
    """What a run is to do."""

    model: ModelSource
    """The base model to start from."""
    dataset: Dataset
    """What to train on."""
    training: Training
    """How to train."""
    output: Output
    """Where the result goes."""
    storage: Storage = Storage()
    """How to reach S3."""

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """The trainer's part of a FineTuneJob, with the placeholders of `output.uri` filled in.

        Raises pydantic's `ValidationError` with the path of each wrong field.
        """
        config = cls.model_validate(_without_cluster_only(manifest.get("spec", {})))
        metadata = manifest.get("metadata", {})
        uri = config.output.uri
        for key in ("name", "namespace"):
            uri = uri.replace("{" + key + "}", metadata.get(key, "default"))
        return config.model_copy(update={"output": Output(uri=uri)})

    def digest(self) -> str:
        """`sha256:…` of every field that affects the result; where the result lies is not one of them."""
        parts = self.model_dump(mode="json", by_alias=True, exclude_none=True, include={"model", "dataset", "training"})
        canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


class ExitCode(IntEnum):
    """What the Job's `podFailurePolicy` tells apart."""

    OK = 0  # a result is published
    INTERNAL = 1  # a bug or a passing fault: counted, retried
    PERMANENT = 42  # another attempt would end the same way: the Job fails at once
    TRANSIENT = 75  # the world may heal: counted, retried
    PREEMPTED = 143  # told to stop: not counted, started again


class Reason(StrEnum):
    """Why a run ended. The same words stand in conditions, events and logs."""

    COMPLETED = "Completed"  # the result is published
    ALREADY_COMPLETE = "AlreadyComplete"  # the same run's result was there; nothing was trained
    CONFIG_INVALID = "ConfigInvalid"  # the config breaks a rule
    DATA_NOT_FOUND = "DataNotFound"  # bucket, key or prefix does not exist or holds nothing
    DATA_INVALID = "DataInvalid"  # a row cannot be read
    DATASET_EMPTY = "DatasetEmpty"  # no row is left to train on
    MODEL_NOT_FOUND = "ModelNotFound"  # no model at that place
    MODEL_INVALID = "ModelInvalid"  # files are there but are not a model that may be loaded
    AUTH_FAILED = "AuthFailed"  # credentials are missing, wrong or expired
    ACCESS_DENIED = "AccessDenied"  # credentials are good but may not do this
    STORAGE_UNREACHABLE = "StorageUnreachable"  # the endpoint does not answer
    STORAGE_CORRUPT = "StorageCorrupt"  # bytes differ from what the store announced
    OUTPUT_EXISTS = "OutputExists"  # another run's result lies at the output
    INPUTS_CHANGED = "InputsChanged"  # this run's result lies there, made from other inputs
    OUT_OF_MEMORY = "OutOfMemory"  # GPU or host memory is too small
    DISK_FULL = "DiskFull"  # scratch is too small
    NON_FINITE_LOSS = "NonFiniteLoss"  # the loss became NaN or infinite
    PREEMPTED = "Preempted"  # told to stop
    INTERNAL_ERROR = "InternalError"  # a bug

    @property
    def exit_code(self) -> ExitCode:
        """The process' exit status for this reason."""
        return _EXIT_CODES.get(self, ExitCode.PERMANENT)


_EXIT_CODES = {
    Reason.COMPLETED: ExitCode.OK,
    Reason.ALREADY_COMPLETE: ExitCode.OK,
    Reason.STORAGE_UNREACHABLE: ExitCode.TRANSIENT,
    Reason.STORAGE_CORRUPT: ExitCode.TRANSIENT,
    Reason.PREEMPTED: ExitCode.PREEMPTED,
    Reason.INTERNAL_ERROR: ExitCode.INTERNAL,
}


class Stage(StrEnum):
    """What the trainer is doing."""

    DOWNLOADING = "Downloading"
    PREPARING = "Preparing"
    LOADING = "Loading"
    TRAINING = "Training"
    EXPORTING = "Exporting"
    UPLOADING = "Uploading"
    DONE = "Done"


class Progress(Model):
    """How far a run is, as the trainer last said."""

    stage: Stage
    """What the trainer is doing."""
    percentage: int = Field(default=0, ge=0, le=100)
    """Optimizer steps done, of all; 100 only when the result is published."""
    step: int | None = Field(default=None, ge=0)
    """Optimizer steps done."""
    total_steps: int | None = Field(default=None, ge=0)
    """Optimizer steps in all."""
    epoch: float | None = Field(default=None, ge=0)
    """Passes over the data done."""
    loss: float | None = None
    """Mean loss per learnt token of the last step that was logged."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Tokens trained per second, padding not counted."""
    estimated_remaining_seconds: int | None = Field(default=None, ge=0)
    """Seconds of training left at the pace of this attempt."""
    last_update_time: Annotated[str, StringConstraints(max_length=64)]
    """When the trainer said so (RFC 3339)."""


class DatasetReport(Model):
    """What became of the rows: rows = kept + the sum of rejected."""

    rows: int = Field(ge=0)
    """Rows read."""
    kept: int = Field(ge=0)
    """Rows trained on."""
    rejected: dict[str, int] = Field(default={}, max_length=16)
    """Rows left out, by reason."""
    tokens: int = Field(ge=0)
    """Tokens of the kept rows."""
    supervised_tokens: int = Field(ge=0)
    """Tokens of the kept rows that are learnt."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """`sha256:…` over every input object's URI and content digest."""


class Result(Model):
    """What was published."""

    adapter_uri: Annotated[str, StringConstraints(max_length=1024)] = Field(alias="adapterURI")
    """The prefix that holds the adapter."""
    digest: Annotated[str, StringConstraints(max_length=80)]
    """`sha256:…` of `manifest.json`, which lists every file's own digest."""
    model_revision: Annotated[str, StringConstraints(max_length=255)]
    """The hub commit, or a digest of the base model's files."""
    metrics: dict[str, float] = Field(default={}, max_length=32)
    """Numbers of the whole run: `trainLoss`, `trainSeconds`, `tokens`, …"""


class Outcome(Model):
    """How a run ended: the last word of the trainer, at most `OUTCOME_MAX_BYTES` as JSON."""

    reason: Reason
    """One word."""
    message: Annotated[str, StringConstraints(max_length=2048)]
    """What, where and what to do."""
    backend: Annotated[str, StringConstraints(max_length=32)] | None = None
    """The backend that trained."""
    dataset: DatasetReport | None = None
    """What became of the rows."""
    result: Result | None = None
    """What was published."""
    progress: Progress | None = None
    """How far it came."""
