"""`TrainerConfig`, the input of a run. The spec in the CRD is derived from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints

from finetune_trainer.contract.base import (
    MODEL_URI_RULES,
    NO_PARENT,
    SHORT_IN_BYTES,
    Model,
    SecretRef,
    Uri,
    cel_rules,
    s3_uri_rule,
    uri_text_rule,
)
from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.evaluation import Evaluation
from finetune_trainer.contract.tracking import Tracking
from finetune_trainer.contract.training import Training

CLUSTER_ONLY_FIELDS = (
    "compute",
    "suspend",
    "suspendAtStep",
    "cancel",
    "budget",
    "backoffLimit",
    "maxInterruptions",
    "startupDeadlineSeconds",
    "activeDeadlineSeconds",
    "ttlSecondsAfterFinished",
    "managedBy",
    "model.tokenSecretRef",
    "dataset.tokenSecretRef",
    "evaluation.endpoints[].credentialsSecretRef",
    "storage.credentialsSecretRef",
    "storage.caConfigMapRef",
    "tracking.credentialsSecretRef",
)
"""Fields of a FineTuneJob's spec that only a cluster can apply. The trainer ignores them when it runs without one."""


class ModelSource(Model):
    """ModelSource is the base model to fine-tune."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            *MODEL_URI_RULES,
            s3_uri_rule("adapterURI", is_optional=True),
            uri_text_rule("adapterURI", is_optional=True),
            ("!has(self.revision) || self.uri.startsWith('hf://')", "revision applies to hf:// models only"),
            NO_PARENT,
            SHORT_IN_BYTES,
            (
                "!has(self.adapterURI) || (!self.adapterURI.contains('/../') && !self.adapterURI.endsWith('/..') "
                "&& !self.adapterURI.contains('*') && bytes(self.adapterURI).size() <= 1024)",
                "adapterURI must not contain '..' or wildcards and must not be longer than 1024 bytes",
            ),
            (
                "!has(self.chatTemplate) || bytes(self.chatTemplate).size() <= 32768",
                "chatTemplate must not be longer than 32768 bytes",
            ),
            (
                "!has(self.chatTemplate) || !has(self.chatTemplateName)",
                "at most one of chatTemplate and chatTemplateName may be set",
            ),
        )
    )

    uri: Uri
    """uri is the location of the model: `s3://bucket/prefix`, `hf://organization/name` or `pvc://claim/path`. It must
    contain `config.json`, safetensors weights and the tokenizer files."""
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=255)] | None = None
    """revision is the branch, tag or commit of an `hf://` model. The commit that it resolves to when the run starts is
    recorded in the result. If unset, `main` is used."""
    max_length: int = Field(default=2048, ge=16, le=1_048_576)
    """maxLength is the maximum length of a training row, in tokens. Longer rows are handled as set in
    `dataset.preparation.overlength`. Defaults to 2048."""
    adapter_uri: Uri | None = Field(default=None, alias="adapterURI")
    """adapterURI is the S3 prefix of an existing LoRA adapter of this base model to continue training from, such as the
    `output.uri` of an earlier run. Its rank, alpha, variant, target modules, target parameters and trainable tokens
    must be equal to those in `training.lora`. If unset, a new adapter is trained."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """quantization is the precision in which bitsandbytes keeps the frozen base model in memory. `int8` needs about
    half and `nf4` (QLoRA) about a quarter of the memory of 16-bit weights. The adapter is never quantized. Defaults to
    none."""
    min_quantized_fraction: float = Field(default=0.9, ge=0, le=1)
    """minQuantizedFraction is the minimum fraction of the weights of the linear layers and experts that `quantization`
    must cover; the run fails below it. The report has the actual fraction. Defaults to 0.9."""
    chat_template: (
        Annotated[str, StringConstraints(pattern=r"^[^\x00-\x08\x0b\x0c\x0e-\x1f]*$", min_length=1, max_length=32768)]
        | None
    ) = None
    """chatTemplate is a Jinja chat template that replaces the template of the tokenizer, for base models that have none
    or one that does not render the rows completely. It is stored with the adapter."""
    chat_template_name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.-]+$", max_length=64)] | None = None
    """chatTemplateName is the name of a training template that TRL bundles, such as `qwen3`, which replaces the
    template of the tokenizer. Training templates mark the answers and keep the reasoning of all turns. It is stored
    with the adapter."""
    chat_template_arguments: dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)],
        Annotated[str, StringConstraints(max_length=256)],
    ] = Field(default={}, max_length=16)
    """chatTemplateArguments are variables of the chat template, such as `enable_thinking: "false"`. Each value is a
    JSON scalar, or else plain text. They apply to training, evaluation and, as defaults of the published template, to
    servers."""


GgufType = Literal["f16", "bf16", "q8_0"]
"""Number formats of GGUF files that llama.cpp's conversion scripts write."""


class Signing(Model):
    """Signing configures the signature of the published result."""

    key_secret_ref: SecretRef
    """keySecretRef refers to the Secret with the signing key. Its key `signing-key.pem` contains an unencrypted PEM
    private key on the elliptic curve P-256, P-384 or P-521."""


class Output(Model):
    """Output is the location of the result."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            s3_uri_rule("uri"),
            uri_text_rule("uri"),
            (
                "self.uri.matches('^([^{}]|[{]name[}]|[{]namespace[}])*$')",
                "uri has a brace that does not belong to {name} or {namespace}, which are the only placeholders",
            ),
            ("!self.uri.contains('*') && !self.uri.contains('?')", "uri must not contain wildcards"),
            NO_PARENT,
            SHORT_IN_BYTES,
        )
    )

    uri: Uri
    """uri is the S3 prefix that the adapter is published to, without subfolders. `{name}` and `{namespace}` are
    replaced by the name and namespace of the FineTuneJob. Existing results and other files there are never
    overwritten."""
    merged: bool = False
    """merged also publishes the complete model with the adapter merged into its weights, below `merged/`, for servers
    that cannot load adapters. It is as large as the base model and needs `model.quantization` none. It is created after
    the adapter is published; if that fails, the run still completes and its message gives the reason. Defaults to
    false."""
    gguf: Literal["none", GgufType] = "none"
    """gguf also publishes the adapter for llama.cpp and Ollama, as a GGUF file of this number format below `gguf/`, and
    with `merged` the complete model. It does not affect the training: it can be set later, for a run whose result is
    published. `q8_0` stores matrices whose rows are no multiple of 32 as f16. The files are created after the adapter
    is published; if that fails, the run still completes and its message gives the reason. Defaults to none."""
    base_model_name: (
        Annotated[
            str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)
        ]
        | None
    ) = None
    """baseModelName is the name of the base model on the Hugging Face hub, such as `Qwen/Qwen3-8B`, by which servers
    and the model card refer to it. If unset, it is that of an `hf://` model, or else the URI of the model."""
    license: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]+$", max_length=64)] | None = None
    """license is the license of the adapter in the model card, as an identifier of the Hugging Face hub, such as
    `apache-2.0`. If unset, it is that of the card of an `hf://` model; other models have no card."""
    languages: list[Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$", max_length=3)]] = Field(
        default=[], max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}
    )
    """languages are the ISO 639 codes of the languages of the data in the model card, such as `en`."""
    signing: Signing | None = None
    """signing also publishes `model.sig`, a signature of all other files that `model_signing verify key` (OpenSSF)
    verifies. The merged model gets its own signature. If unset, the result is not signed."""


class Storage(Model):
    """Storage configures the access to S3. By default this is AWS S3 with the identity of the pod."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#@]+/?$", max_length=512)] | None = None
    """endpoint is the URL of an S3-compatible object store. If unset, AWS S3 is used."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """region is the region of the object store. If unset, it is taken from the environment, or else us-east-1 is
    used."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """addressing is the URL style of requests. `path` is endpoint/bucket/key, `virtual` is bucket.endpoint/key, and
    `auto` is virtual for AWS and path for other stores. Defaults to auto."""
    checksums: Literal["auto", "whenRequired"] = "auto"
    """checksums sets when checksum headers are sent. `whenRequired` sends them only where S3 requires them, for older
    S3-compatible stores. Defaults to auto."""


def _drop_cluster_only_fields(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    trainer_fields = {key: value for key, value in spec.items() if prefix + key not in CLUSTER_ONLY_FIELDS}
    return {key: _drop_from_value(value, prefix + key) for key, value in trainer_fields.items()}


def _drop_from_value(value: object, path: str) -> object:
    if isinstance(value, Mapping):
        return _drop_cluster_only_fields(value, f"{path}.")
    if isinstance(value, list):
        return [_drop_from_value(item, f"{path}[]") for item in value]
    return value


_HAS_HELD_OUT_ROWS = "(has(self.dataset.validation) || has(self.evaluation.test))"
TRAINER_RULES = (
    (
        "!(self.training.method in ['dpo', 'kto']) "
        "|| self.dataset.sources.all(each, each.format in ['auto', 'preference'])",
        "methods dpo and kto need preference data; set the format of all sources to preference or auto",
    ),
    (
        "self.training.method in ['dpo', 'kto'] || self.dataset.sources.all(each, each.format != 'preference')",
        "method sft cannot use format preference; use dpo or kto",
    ),
    (
        "!(self.training.method in ['grpo', 'rloo']) || self.dataset.sources.all(each, each.format != 'text')",
        "methods grpo and rloo need prompts; format text has none",
    ),
    (
        "self.training.rewards.all(each, self.evaluation.graders.exists(grader, grader.name == each.grader))",
        "training.rewards must be names of evaluation.graders",
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
        "self.output.gguf == 'none' || self.output.merged || (self.training.lora.variant != 'dora' "
        "&& self.training.lora.targetParameters.size() == 0 && self.training.lora.trainableTokens.size() == 0)",
        "output.gguf needs output.merged for variant dora, targetParameters and trainableTokens, of which llama.cpp "
        "loads no adapters",
    ),
    (
        "!has(self.training.earlyStopping) || has(self.dataset.validation)",
        "training.earlyStopping needs dataset.validation",
    ),
    (
        f"!has(self.evaluation.task) || ({_HAS_HELD_OUT_ROWS} && self.training.method == 'sft')",
        "evaluation.task needs dataset.validation or evaluation.test, and method sft",
    ),
    (
        "self.evaluation.graders.size() == 0 || self.training.method in ['grpo', 'rloo'] "
        f"|| ({_HAS_HELD_OUT_ROWS} && self.training.method == 'sft')",
        "evaluation.graders needs method sft with dataset.validation or evaluation.test, or method grpo or rloo",
    ),
    (
        f"self.evaluation.baselines.size() == 0 || ({_HAS_HELD_OUT_ROWS} && self.training.method == 'sft')",
        "evaluation.baselines needs dataset.validation or evaluation.test, and method sft",
    ),
    (
        "!has(self.evaluation.test) || self.training.method == 'sft'",
        "evaluation.test needs method sft",
    ),
    (
        "has(self.dataset.validation) || self.evaluation.gate.all(each, each.metric == 'crossValidationLoss' "
        "|| (has(self.evaluation.test) && each.metric.startsWith('test')))",
        "evaluation.gate needs dataset.validation for all metrics except crossValidationLoss and, with "
        "evaluation.test, those that begin with test",
    ),
    (
        "has(self.training.crossValidation) || self.evaluation.gate.all(each, each.metric != 'crossValidationLoss')",
        "crossValidationLoss in evaluation.gate needs training.crossValidation",
    ),
)
"""Rules that span several sections of the config. They apply to `TrainerConfig` and its subclasses."""


class TrainerConfig(Model):
    """TrainerConfig is the configuration of a run."""

    model_config = ConfigDict(json_schema_extra=cel_rules(*TRAINER_RULES))

    model: ModelSource
    """model describes the base model to fine-tune."""
    dataset: Dataset
    """dataset describes the training data."""
    training: Training
    """training configures the training method and its hyperparameters."""
    evaluation: Evaluation = Evaluation()
    """evaluation configures how the fine-tuned model is compared with the base model before it is published."""
    output: Output
    """output describes where the result is published."""
    storage: Storage = Storage()
    """storage configures the access to S3."""
    tracking: Tracking | None = None
    """tracking configures an experiment tracker that records losses and metrics. If unset, they are available in the
    status and in the report only."""

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> Self:
        """Return the trainer's part of a FineTuneJob, with the placeholders in `output.uri` replaced.

        Raises pydantic's `ValidationError` with the path of each invalid field.
        """
        config = cls.model_validate(_drop_cluster_only_fields(manifest.get("spec", {})))
        metadata = manifest.get("metadata", {})
        uri = config.output.uri
        for key in ("name", "namespace"):
            uri = uri.replace("{" + key + "}", metadata.get(key, "default"))
        return config.model_copy(update={"output": Output(**{**dict(config.output), "uri": uri})})

    def digest(self) -> str:
        """Return `sha256:…` over all fields that affect the result. The location of the result is not one of them.

        Fields at their defaults are omitted, so that the digest stays the same when a later version adds fields.
        """
        sections = self.model_copy(update={"training": self.training.replace_batching()}).model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude_defaults=True,
            include={"model": True, "dataset": True, "training": True, "evaluation": True, "output": {"merged"}},
            exclude={"training": {"checkpoints", "stall_seconds"}, "evaluation": {"endpoints"}},
        )
        canonical_json = json.dumps(
            {name: section for name, section in sections.items() if section}, sort_keys=True, separators=(",", ":")
        )
        return "sha256:" + hashlib.sha256(canonical_json.encode()).hexdigest()
