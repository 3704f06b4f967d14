"""Invalid models, datasets and training settings, as changes to a valid manifest."""

from __future__ import annotations

from typing import Any

from tests.support.cluster.manifests import ABSENT, DPO_TRAINING, LORA, PREPARATION, SECRET, SOURCE

# name: (changes to the valid manifest, field in the error, text in the error)
MODEL_URIS = "uri must be hf://ORGANIZATION/NAME, s3://bucket/prefix or pvc://claim/path"
INVALID_TRAINING_SPECS: dict[str, tuple[dict[str, Any], str, str]] = {
    "name of 53 characters": ({"metadata.name": "a" * 53}, "<nil>", "at most 52 characters"),
    "name with a dot": ({"metadata.name": "a.b"}, "<nil>", "must be a DNS label"),
    "name in upper case": ({"metadata.name": "Good"}, "metadata.name", "RFC 1123"),
    "no spec": ({"spec": ABSENT}, "spec", "Required value"),
    "unknown field in spec": ({"spec.ownedBy": "me"}, "spec.ownedBy", "unknown field"),
    "unknown field next to spec": ({"sepc": {}}, "sepc", "unknown field"),
    # model
    "no model": ({"spec.model": ABSENT}, "spec.model", "Required value"),
    "no model uri": ({"spec.model": {}}, "spec.model.uri", "Required value"),
    "model from the web": ({"spec.model.uri": "https://example.com/m"}, "spec.model", MODEL_URIS),
    "model in a bucket in upper case": ({"spec.model.uri": "s3://Models/base"}, "spec.model", MODEL_URIS),
    "model is a bucket": ({"spec.model.uri": "s3://models"}, "spec.model", MODEL_URIS),
    "model on a local disk": ({"spec.model.uri": "file:///models/a"}, "spec", "only with finetune-trainer by hand"),
    "hub model without a name": ({"spec.model.uri": "hf://meta-llama"}, "spec.model", "is hf://ORGANIZATION/NAME"),
    "hub model with three parts": ({"spec.model.uri": "hf://a/b/c"}, "spec.model", "tag or commit in revision"),
    "hub model without a scheme": ({"spec.model.uri": "org/name"}, "spec.model", "use hf://org/name for the model"),
    "model outside of its claim": ({"spec.model.uri": "pvc://claim/../other"}, "spec.model", "must not contain '..'"),
    "model uri of 1025 characters": ({"spec.model.uri": "s3://m00/" + "a" * 1016}, "spec.model.uri", "Too long"),
    "revision of an S3 model": ({"spec.model.revision": "main"}, "spec.model", "applies to hf:// models only"),
    "revision with a space": (
        {"spec.model": {"uri": "hf://a/b", "revision": "my branch"}}, "spec.model.revision", "should match",
    ),
    "length below 16": ({"spec.model.maxLength": 15}, "spec.model.maxLength", "greater than or equal to 16"),
    "length as text": ({"spec.model.maxLength": "2048"}, "spec.model.maxLength", "must be of type integer"),
    "token of an S3 model": ({"spec.model.tokenSecretRef": SECRET}, "spec", "applies to hf:// models only"),
    "token without a name": (
        {"spec.model": {"uri": "hf://a/b", "tokenSecretRef": {}}}, "spec.model.tokenSecretRef.name", "Required value",
    ),
    "token in another namespace": (
        {"spec.model": {"uri": "hf://a/b", "tokenSecretRef": {"name": "t", "namespace": "other"}}},
        "spec.model.tokenSecretRef.namespace", "unknown field",
    ),
    # dataset
    "no dataset": ({"spec.dataset": ABSENT}, "spec.dataset", "Required value"),
    "no sources": ({"spec.dataset.sources": []}, "spec.dataset.sources", "at least 1 items"),
    "17 sources": (
        {"spec.dataset.sources": [{"uri": "s3://data/a"}] * 17}, "spec.dataset.sources", "at most 16 items",
    ),
    "source on the hub": ({f"{SOURCE}.uri": "hf://a/b"}, "spec.dataset.sources[0]", "is hf://datasets/OWNER/NAME"),
    "source of another cloud": ({f"{SOURCE}.uri": "gs://data/a"}, "spec.dataset.sources[0]", "uri must be s3://"),
    "source without a scheme": ({f"{SOURCE}.uri": "./a.jsonl"}, "spec.dataset.sources[0]", "without a cluster"),
    "split of a bucket": ({f"{SOURCE}.split": "train"}, "spec.dataset.sources[0]", "subset and split apply to"),
    "source is a local file": ({f"{SOURCE}.uri": "file:///a.jsonl"}, "spec.dataset", "use s3://, hf:// or pvc://"),
    "token of S3 data": ({"spec.dataset.tokenSecretRef": SECRET}, "spec", "applies to hf:// data only"),
    "source with ..": ({f"{SOURCE}.uri": "s3://data/../x"}, "spec.dataset.sources[0]", "must not contain '..'"),
    "source with a line break": ({f"{SOURCE}.uri": "s3://data/a\nb"}, "spec.dataset.sources[0].uri", "should match"),
    "unknown format": ({f"{SOURCE}.format": "csv"}, "spec.dataset.sources[0].format", "Unsupported value"),
    "limit of no rows": ({f"{SOURCE}.limit": 0}, "spec.dataset.sources[0].limit", "greater than or equal to 1"),
    "misspelled source": ({f"{SOURCE}.limits": 1}, "spec.dataset.sources[0].limits", "unknown field"),
    "column of no format": ({f"{SOURCE}.fields": {"question": "q"}}, "spec.dataset.sources[0].fields", "malformed"),
    "validation of nothing": ({"spec.dataset.validation": {}}, "spec.dataset.validation", "exactly one of fraction"),
    "validation twice": (
        {"spec.dataset.validation": {"fraction": 0.1, "sources": [{"uri": "s3://data/b"}]}}, "spec.dataset.validation",
        "exactly one of fraction and sources",
    ),
    "more validation than training": (
        {"spec.dataset.validation": {"fraction": 0.6}}, "spec.dataset.validation.fraction", "less than or equal to 0.5",
    ),
    "five validation sources": (
        {"spec.dataset.validation": {"sources": [{"uri": "s3://data/b"}] * 5}}, "spec.dataset.validation.sources",
        "at most 4 items",
    ),
    "everything resembles": ({f"{PREPARATION}.nearThreshold": 0.4}, f"{PREPARATION}.nearThreshold", "equal to 0.5"),
    "unknown duplicates": ({f"{PREPARATION}.deduplicate": "fuzzy"}, f"{PREPARATION}.deduplicate", "Unsupported value"),
    "unknown overlength": ({f"{PREPARATION}.overlength": "split"}, f"{PREPARATION}.overlength", "Unsupported value"),
    "more invalid than all": (
        {f"{PREPARATION}.maxInvalidFraction": 1.1}, f"{PREPARATION}.maxInvalidFraction", "equal to 1"),
    "unknown secret": ({f"{PREPARATION}.redact": ["name"]}, f"{PREPARATION}.redact[0]", "Unsupported value"),
    "redacted twice": ({f"{PREPARATION}.redact": ["email", "email"]}, f"{PREPARATION}.redact", "Duplicate value"),
    "adapter on the hub": ({"spec.model.adapterURI": "hf://a/b"}, "spec.model", "adapterURI must be s3://"),
    "adapter with ..": ({"spec.model.adapterURI": "s3://adapters/../x"}, "spec.model", "must not contain '..'"),
    "unknown quantization": ({"spec.model.quantization": "int4"}, "spec.model.quantization", "Unsupported value"),
    "long template": ({"spec.model.chatTemplate": "ü" * 16385}, "spec.model", "must not be longer than 32768 bytes"),
    "preferences for sft": ({f"{SOURCE}.format": "preference"}, "spec", "method sft cannot use format preference"),
    "messages for dpo": (
        {f"{SOURCE}.format": "messages", "spec.training.method": "dpo"}, "spec", "dpo and kto need preference data",
    ),
    # training
    "packed preferences": (
        {"spec.training": {"epochs": 1, "method": "dpo", "packing": True}}, "spec.training", "to method sft only",
    ),
    "loss all for dpo": (
        {"spec.training": {"epochs": 1, "method": "dpo", "loss": "all"}}, "spec.training", "loss all applies to",
    ),
    "kto of one": (
        {"spec.training": {"epochs": 1, "method": "kto", "batchSize": 1}}, "spec.training", "batchSize of at least 2",
    ),
    "beta 0": ({"spec.training.beta": 0}, "spec.training.beta", "greater than 0"),
    "unknown variant": ({f"{LORA}.variant": "pissa"}, f"{LORA}.variant", "Unsupported value"),
    "no step between checkpoints": (
        {"spec.training.checkpoints": {"everySteps": 0}}, "spec.training.checkpoints.everySteps", "equal to 1",
    ),
    "no checkpoint kept": ({"spec.training.checkpoints": {"keep": 0}}, "spec.training.checkpoints.keep", "equal to 1"),
    "stalled at once": ({"spec.training.stallSeconds": 9}, "spec.training.stallSeconds", "equal to 10"),
    "no training": ({"spec.training": ABSENT}, "spec.training", "Required value"),
    "neither epochs nor steps": ({"spec.training": {}}, "spec.training", "exactly one of epochs and maxSteps"),
    "epochs and steps": ({"spec.training.maxSteps": 9}, "spec.training", "exactly one of epochs and maxSteps"),
    "no epochs": ({"spec.training.epochs": 0}, "spec.training.epochs", "greater than 0"),
    "1001 epochs": ({"spec.training.epochs": 1001}, "spec.training.epochs", "less than or equal to 1000"),
    "half a step": ({"spec.training": {"maxSteps": 0.5}}, "spec.training.maxSteps", "must be of type integer"),
    "no steps": ({"spec.training": {"maxSteps": 0}}, "spec.training.maxSteps", "greater than or equal to 1"),
    "empty batches": ({"spec.training.batchSize": 0}, "spec.training.batchSize", "greater than or equal to 1"),
    "no accumulation": ({"spec.training.gradientAccumulation": 0}, "spec.training.gradientAccumulation", "equal to 1"),
    "no learning": ({"spec.training.learningRate": 0}, "spec.training.learningRate", "greater than 0"),
    "learning rate above 1": ({"spec.training.learningRate": 2}, "spec.training.learningRate", "equal to 1"),
    "learning rate as text": ({"spec.training.learningRate": "2e-4"}, "spec.training.learningRate", "of type number"),
    "unknown scheduler": ({"spec.training.scheduler": "wsd"}, "spec.training.scheduler", "Unsupported value"),
    "nothing but warm-up": ({"spec.training.warmupRatio": 1}, "spec.training.warmupRatio", "less than 1"),
    "negative decay": ({"spec.training.weightDecay": -0.1}, "spec.training.weightDecay", "equal to 0"),
    "gradients clipped away": ({"spec.training.maxGradNorm": 0}, "spec.training.maxGradNorm", "greater than 0"),
    "unknown precision": ({"spec.training.precision": "int8"}, "spec.training.precision", "Unsupported value"),
    "unknown method": ({"spec.training.method": "ppo"}, "spec.training.method", "Unsupported value"),
    "unknown backend": ({"spec.training.backend": "jax"}, "spec.training.backend", "Unsupported value"),
    "unknown loss": ({"spec.training.loss": "prompt"}, "spec.training.loss", "Unsupported value"),
    "seed too large": ({"spec.training.seed": 2**31}, "spec.training.seed", "less than or equal to"),
    "checkpointing as text": (
        {"spec.training.gradientCheckpointing": "yes"}, "spec.training.gradientCheckpointing", "of type boolean",
    ),
    "rank 0": ({f"{LORA}.rank": 0}, f"{LORA}.rank", "greater than or equal to 1"),
    "alpha 0": ({f"{LORA}.alpha": 0}, f"{LORA}.alpha", "greater than 0"),
    "all dropped out": ({f"{LORA}.dropout": 1}, f"{LORA}.dropout", "less than 1"),
    "no target modules": ({f"{LORA}.targetModules": []}, f"{LORA}.targetModules", "at least 1 items"),
    "all modules and one": ({f"{LORA}.targetModules": ["all-linear", "q_proj"]}, LORA, "either ['all-linear'] or"),
    "module with a space": ({f"{LORA}.targetModules": ["q proj"]}, f"{LORA}.targetModules[0]", "should match"),
    # batches of several devices
    "packing and other batching": (
        {"spec.training": {"epochs": 1, "packing": True, "batching": "padded"}}, "spec.training", "batching replaces",
    ),
    "padding-free preferences": (
        {**DPO_TRAINING, "spec.training": {"epochs": 1, "method": "dpo", "batching": "paddingFree"}},
        "spec.training", "batching paddingFree and packed apply to method sft only",
    ),
    "by length for kto": (
        {**DPO_TRAINING, "spec.training": {"epochs": 1, "method": "kto", "batching": "byLength"}},
        "spec.training", "byLength to sft and dpo",
    ),
    "unknown batching": ({"spec.training.batching": "sorted"}, "spec.training.batching", "Unsupported value"),
    "two sizes of a step": (
        {"spec.training": {"epochs": 1, "globalBatchSize": 8, "gradientAccumulation": 2}}, "spec.training",
        "globalBatchSize replaces gradientAccumulation",
    ),
    "part of a batch in a step": (
        {"spec.training": {"epochs": 1, "globalBatchSize": 9}}, "spec.training", "must be a multiple of batchSize",
    ),
    "step not divisible by GPUs": (
        {"spec.training": {"epochs": 1, "globalBatchSize": 8}, "spec.compute": {"nodes": 2, "gpusPerNode": 3}}, "spec",
        "multiple of training.batchSize x compute.nodes x compute.gpusPerNode",
    ),
    "global batch of kto": (
        {**DPO_TRAINING, "spec.training": {"epochs": 1, "method": "kto", "globalBatchSize": 8}}, "spec.training",
        "globalBatchSize does not apply to method kto",
    ),
    "two warm-ups": (
        {"spec.training": {"epochs": 1, "warmupSteps": 5, "warmupRatio": 0.1}}, "spec.training",
        "warmupSteps replaces warmupRatio",
    ),
    "negative warm-up": ({"spec.training.warmupSteps": -1}, "spec.training.warmupSteps", "equal to 0"),
    "floor of a constant rate": (
        {"spec.training": {"epochs": 1, "scheduler": "constant", "minLearningRateRatio": 0.1}}, "spec.training",
        "minLearningRateRatio does not apply to scheduler constant",
    ),
    "floor at the peak": (
        {"spec.training.minLearningRateRatio": 1}, "spec.training.minLearningRateRatio", "less than 1",
    ),
    "Liger in Unsloth": (
        {"spec.training": {"epochs": 1, "backend": "unsloth", "kernels": "liger"}}, "spec.training",
        "kernels liger needs backend transformers or auto",
    ),
    "unknown optimizer": ({"spec.training.optimizer": "lion"}, "spec.training.optimizer", "Unsupported value"),
    # sharded base models
    "unknown sharding": ({"spec.compute.sharding": "zero3"}, "spec.compute.sharding", "Unsupported value"),
    "sharded by Unsloth": (
        {"spec.compute.sharding": "full", "spec.training.backend": "unsloth"}, "spec", "training.backend transformers",
    ),
    "sharded kto": (
        {**DPO_TRAINING, "spec.compute.sharding": "full", "spec.training.method": "kto"}, "spec",
        "compute.sharding full needs training.method sft or dpo",
    ),
    "sharded int8": (
        {"spec.compute.sharding": "full", "spec.model.quantization": "int8"}, "spec", "needs model.quantization none",
    ),
    "sharded nf4": (
        {"spec.compute.sharding": "full", "spec.model.quantization": "nf4"}, "spec", "needs model.quantization none",
    ),
    "sharded liger": (
        {"spec.compute.sharding": "full", "spec.training.kernels": "liger"}, "spec", "needs training.kernels standard",
    ),
    "sharded merged": ({"spec.compute.sharding": "full", "spec.output.merged": True}, "spec", "support output.merged"),
    "sharded dora": ({"spec.compute.sharding": "full", f"{LORA}.variant": "dora"}, "spec", "lora.variant lora or rslo"),
    "sharded experts": (
        {"spec.compute.sharding": "full", f"{LORA}.targetParameters": ["mlp.experts.down_proj"]}, "spec",
        "no lora.targetParameters or lora.trainableTokens",
    ),
    "sharded tokens": (
        {"spec.compute.sharding": "full", f"{LORA}.trainableTokens": ["<|im_end|>"]}, "spec",
        "no lora.targetParameters or lora.trainableTokens",
    ),
}  # fmt: skip
