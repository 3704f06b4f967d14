"""What a run is to do: `TrainerConfig`, from which the CRD's spec is derived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import NO_PARENT, SHORT_IN_BYTES, Model, ModelUri, ModuleName, S3Uri, rules

CLUSTER_ONLY_FIELDS = (
    "compute",
    "backoffLimit",
    "model.tokenSecretRef",
    "storage.credentialsSecretRef",
    "storage.caConfigMapRef",
)
"""Fields of a FineTuneJob's spec that only a cluster can honour; the trainer run by hand sets them aside."""


class ModelSource(Model):
    """The base model to start from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            ("!has(self.revision) || self.uri.startsWith('hf://')", "revision applies to hf:// models only"),
            NO_PARENT,
            SHORT_IN_BYTES,
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
            NO_PARENT,
            SHORT_IN_BYTES,
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
            NO_PARENT,
            SHORT_IN_BYTES,
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
