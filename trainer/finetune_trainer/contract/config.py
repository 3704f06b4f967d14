"""What a run is to do: `TrainerConfig`, from which the CRD's spec is derived."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import NO_PARENT, SHORT_IN_BYTES, Model, ModelUri, S3Uri, SecretRef, cel_rules
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.evaluation import Evaluation
from finetune_trainer.contract.tracking import Tracking
from finetune_trainer.contract.training import Training

CLUSTER_ONLY_FIELDS = (
    "compute",
    "suspend",
    "backoffLimit",
    "startupDeadlineSeconds",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "model.tokenSecretRef",
    "storage.credentialsSecretRef",
    "storage.caConfigMapRef",
    "tracking.credentialsSecretRef",
)
"""Fields of a FineTuneJob's spec that only a cluster can honour; the trainer run by hand sets them aside."""


class ModelSource(Model):
    """The base model to start from."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("!has(self.revision) || self.uri.startsWith('hf://')", "revision applies to hf:// models only"),
            NO_PARENT,
            SHORT_IN_BYTES,
            (
                "!has(self.adapterURI) || (!self.adapterURI.contains('/../') && !self.adapterURI.endsWith('/..') "
                "&& !self.adapterURI.contains('*') && bytes(self.adapterURI).size() <= 1024)",
                "adapterURI must not contain '..' or wildcards, nor be longer than 1024 bytes",
            ),
            (
                "!has(self.chatTemplate) || bytes(self.chatTemplate).size() <= 8192",
                "chatTemplate must not be longer than 8192 bytes",
            ),
        )
    )

    uri: ModelUri
    """Where the model lies: `s3://bucket/prefix`, `hf://organisation/name` or `pvc://claim/path`. It holds
    `config.json`, safetensors weights and tokenizer files."""
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=255)] | None = None
    """Branch, tag or commit of an `hf://` model; the commit that it named at the start is recorded in the result.
    Absent means `main`."""
    max_length: int = Field(default=2048, ge=16, le=1_048_576)
    """Longest example in tokens; `dataset.preparation.overlength` says what becomes of longer ones."""
    adapter_uri: S3Uri | None = Field(default=None, alias="adapterURI")
    """Prefix of a LoRA adapter to train on, made for this base model, such as an earlier run's `output.uri`. Its rank,
    alpha and target modules must be those of `training.lora`. Absent means a new adapter."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the frozen base model is held in memory, by bitsandbytes: `int8` in half and `nf4` (QLoRA) in about a
    quarter of 16 bits. The adapter itself is never quantised."""
    chat_template: (
        Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$", min_length=1, max_length=8192)]
        | None
    ) = None
    """Jinja chat template that replaces the tokenizer's own, for base models without one. It is stored with the
    adapter."""


class Signing(Model):
    """Who vouches for the result."""

    key_secret_ref: SecretRef
    """Secret with a private key under the key `signing-key.pem`: PEM, unencrypted, on the elliptic curve P-256, P-384
    or P-521."""


class Output(Model):
    """Where the result goes."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            ("!self.uri.contains('*') && !self.uri.contains('?')", "uri must not contain wildcards"),
            NO_PARENT,
            SHORT_IN_BYTES,
        )
    )

    uri: S3Uri
    """The prefix that the adapter will lie under, flat, known before the run. `{name}` and `{namespace}` stand for the
    FineTuneJob's own. Neither an existing result nor other files there are ever overwritten."""
    merged: bool = False
    """Also publish the whole model with the adapter worked into its weights, below `merged/`, for servers that load no
    adapters. As large as the base model; needs `model.quantization` none. It is made once the adapter is published; if
    that fails, the run still completes, and its message says why."""
    signing: Signing | None = None
    """Also publish `model.sig`, a signature of all other files that `model_signing verify key` (OpenSSF) checks. The
    merged model has one of its own. Absent means unsigned."""


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


def _drop_cluster_only_fields(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    trainer_fields = {key: value for key, value in spec.items() if prefix + key not in CLUSTER_ONLY_FIELDS}
    return {
        key: _drop_cluster_only_fields(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in trainer_fields.items()
    }


TRAINER_RULES = (
    (
        "self.training.method == 'sft' || self.dataset.sources.all(each, each.format in ['auto', 'preference'])",
        "methods dpo and kto need preference data: set the sources' format to preference or auto",
    ),
    (
        "self.training.method != 'sft' || self.dataset.sources.all(each, each.format != 'preference')",
        "method sft cannot use format preference; use dpo or kto",
    ),
    (
        "self.training.method == 'sft' || self.dataset.preparation.counterfactuals.size() == 0",
        "dataset.preparation.counterfactuals applies to method sft only",
    ),
    (
        "!self.output.merged || self.model.quantization == 'none'",
        "output.merged needs model.quantization none",
    ),
    (
        "!has(self.training.earlyStopping) || has(self.dataset.validation)",
        "training.earlyStopping needs dataset.validation",
    ),
    (
        "!has(self.evaluation.task) || (has(self.dataset.validation) && self.training.method == 'sft')",
        "evaluation.task needs dataset.validation and method sft",
    ),
    (
        "has(self.dataset.validation) || self.evaluation.gate.all(each, each.metric == 'crossValidationLoss')",
        "evaluation.gate needs dataset.validation, but for crossValidationLoss",
    ),
    (
        "has(self.training.crossValidation) || self.evaluation.gate.all(each, each.metric != 'crossValidationLoss')",
        "crossValidationLoss in evaluation.gate needs training.crossValidation",
    ),
)
"""Rules over several parts of the config, for this class and what inherits it."""


class TrainerConfig(Model):
    """What a run is to do."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*TRAINER_RULES))

    model: ModelSource
    """The base model to start from."""
    dataset: Dataset
    """What to train on."""
    training: Training
    """How to train."""
    evaluation: Evaluation = Evaluation()
    """What to find out about the tuned model, beside its base, before it is published."""
    output: Output
    """Where the result goes."""
    storage: Storage = Storage()
    """How to reach S3."""
    tracking: Tracking | None = None
    """Where losses and metrics can be followed and compared with other runs'. Absent means nowhere but in the status
    and the report."""

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """The trainer's part of a FineTuneJob, with the placeholders of `output.uri` filled in.

        Raises pydantic's `ValidationError` with the path of each wrong field.
        """
        config = cls.model_validate(_drop_cluster_only_fields(manifest.get("spec", {})))
        metadata = manifest.get("metadata", {})
        uri = config.output.uri
        for key in ("name", "namespace"):
            uri = uri.replace("{" + key + "}", metadata.get(key, "default"))
        return config.model_copy(update={"output": Output(**{**dict(config.output), "uri": uri})})

    def digest(self) -> str:
        """`sha256:…` of every field that affects the result; where the result lies is not one of them.

        A field at its default counts as absent, so that a later version with more fields finds this one's results.
        """
        sections = self.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude_defaults=True,
            include={"model": True, "dataset": True, "training": True, "evaluation": True, "output": {"merged"}},
            exclude={"training": {"checkpoints", "stall_seconds"}},
        )
        canonical_json = json.dumps(
            {name: section for name, section in sections.items() if section}, sort_keys=True, separators=(",", ":")
        )
        return "sha256:" + hashlib.sha256(canonical_json.encode()).hexdigest()
