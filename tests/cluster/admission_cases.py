"""Manifests that the API server is to take or to refuse, as changes of a good one."""

from __future__ import annotations

import copy
from typing import Any

from finetune_operator.api import API_VERSION, KIND

Manifest = dict[str, Any]

ABSENT = object()


def good(name: str = "good") -> Manifest:
    """The least that is valid."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "s3://models/base/"},
            "dataset": {"sources": [{"uri": "s3://data/train.jsonl"}]},
            "training": {"epochs": 1},
            "output": {"uri": "s3://adapters/{name}"},
        },
    }


def changed(manifest: Manifest, changes: dict[str, Any]) -> Manifest:
    """A copy with values set by dotted path; a number is a list's index, ABSENT removes."""
    result = copy.deepcopy(manifest)
    for path, value in changes.items():
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
        node: Any = result
        for key in parents:
            node = node[key] if isinstance(key, int) else node.setdefault(key, {})
        if value is ABSENT:
            del node[last]
        else:
            node[last] = value
    return result


SOURCE = "spec.dataset.sources.0"
FIELDS = "spec.dataset.sources[0].fields"
PREPARE = "spec.dataset.preparation"
LORA = "spec.training.lora"
SECRET = {"name": "hub-token"}

# name: (changes to the good manifest, field in the answer, words in the answer)
HELD_OUT = {"spec.dataset.validation": {"fraction": 0.1}}
FOLDED = "spec.training.crossValidation"
FOLDS = {FOLDED: {"folds": 5}}
FOLD_LOSS = {"metric": "crossValidationLoss", "maximum": 2.5}
PREFERENCES = {
    "spec.training": {"epochs": 1, "method": "dpo"}, f"{SOURCE}.format": "preference", **HELD_OUT,
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "name of 53 characters": ({"metadata.name": "a" * 53}, "<nil>", "at most 52 characters"),
    "name with a dot": ({"metadata.name": "a.b"}, "<nil>", "must be a DNS label"),
    "name in upper case": ({"metadata.name": "Good"}, "metadata.name", "RFC 1123"),
    "no spec": ({"spec": ABSENT}, "spec", "Required value"),
    "unknown field in spec": ({"spec.managedBy": "me"}, "spec.managedBy", "unknown field"),
    "unknown field beside spec": ({"sepc": {}}, "sepc", "unknown field"),
    # model
    "no model": ({"spec.model": ABSENT}, "spec.model", "Required value"),
    "no model uri": ({"spec.model": {}}, "spec.model.uri", "Required value"),
    "model from the web": ({"spec.model.uri": "https://example.com/m"}, "spec.model.uri", "should match"),
    "model in a bucket in upper case": ({"spec.model.uri": "s3://Models/base"}, "spec.model.uri", "should match"),
    "model is a bucket": ({"spec.model.uri": "s3://models"}, "spec.model.uri", "should match"),
    "hub model without a name": ({"spec.model.uri": "hf://meta-llama"}, "spec.model.uri", "should match"),
    "hub model with three parts": ({"spec.model.uri": "hf://a/b/c"}, "spec.model.uri", "should match"),
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
    "source on the hub": ({f"{SOURCE}.uri": "hf://a/b"}, "spec.dataset.sources[0].uri", "should match"),
    "source with ..": ({f"{SOURCE}.uri": "s3://data/../x"}, "spec.dataset.sources[0]", "must not contain '..'"),
    "source with a line break": ({f"{SOURCE}.uri": "s3://data/a\nb"}, "spec.dataset.sources[0].uri", "should match"),
    "unknown format": ({f"{SOURCE}.format": "csv"}, "spec.dataset.sources[0].format", "Unsupported value"),
    "limit of no rows": ({f"{SOURCE}.limit": 0}, "spec.dataset.sources[0].limit", "greater than or equal to 1"),
    "misspelt source": ({f"{SOURCE}.limits": 1}, "spec.dataset.sources[0].limits", "unknown field"),
    "column of no format": ({f"{SOURCE}.fields": {"question": "q"}}, "spec.dataset.sources[0].fields", "malformed"),
    "column with a bracket": ({f"{SOURCE}.fields": {"text": "a[0]"}}, f"{FIELDS}.text", "should match"),
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
    "everything resembles": ({f"{PREPARE}.nearThreshold": 0.4}, f"{PREPARE}.nearThreshold", "equal to 0.5"),
    "unknown duplicates": ({f"{PREPARE}.deduplicate": "fuzzy"}, f"{PREPARE}.deduplicate", "Unsupported value"),
    "unknown overlength": ({f"{PREPARE}.overlength": "split"}, f"{PREPARE}.overlength", "Unsupported value"),
    "more invalid than all": ({f"{PREPARE}.maxInvalidFraction": 1.1}, f"{PREPARE}.maxInvalidFraction", "equal to 1"),
    "unknown secret": ({f"{PREPARE}.redact": ["name"]}, f"{PREPARE}.redact[0]", "Unsupported value"),
    "redacted twice": ({f"{PREPARE}.redact": ["email", "email"]}, f"{PREPARE}.redact", "Duplicate value"),
    "adapter on the hub": ({"spec.model.adapterURI": "hf://a/b"}, "spec.model.adapterURI", "should match"),
    "adapter with ..": ({"spec.model.adapterURI": "s3://adapters/../x"}, "spec.model", "must not contain '..'"),
    "unknown quantization": ({"spec.model.quantization": "int4"}, "spec.model.quantization", "Unsupported value"),
    "long template": ({"spec.model.chatTemplate": "ü" * 4097}, "spec.model", "must not be longer than 8192 bytes"),
    "preferences for sft": ({f"{SOURCE}.format": "preference"}, "spec", "method sft cannot use format preference"),
    "messages for dpo": (
        {f"{SOURCE}.format": "messages", "spec.training.method": "dpo"}, "spec", "dpo and kto need preference data",
    ),
    # training
    "packed preferences": (
        {"spec.training": {"epochs": 1, "method": "dpo", "packing": True}}, "spec.training", "to method sft only",
    ),
    "packed by unsloth": (
        {"spec.training": {"epochs": 1, "backend": "unsloth", "packing": True}}, "spec.training", "needs backend trans",
    ),
    "whole texts for dpo": (
        {"spec.training": {"epochs": 1, "method": "dpo", "loss": "all"}}, "spec.training", "loss: all applies to",
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
    "unknown method": ({"spec.training.method": "grpo"}, "spec.training.method", "Unsupported value"),
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
    # output and storage
    "no output": ({"spec.output": ABSENT}, "spec.output", "Required value"),
    "output with a wildcard": ({"spec.output.uri": "s3://out/*"}, "spec.output", "must not contain wildcards"),
    "output with ..": ({"spec.output.uri": "s3://out/a/.."}, "spec.output", "must not contain '..'"),
    "output on a claim": ({"spec.output.uri": "pvc://claim/out"}, "spec.output.uri", "should match"),
    "output with a backslash": ({"spec.output.uri": "s3://out/a\\b"}, "spec.output.uri", "should match"),
    "endpoint without a scheme": ({"spec.storage.endpoint": "s3:9000"}, "spec.storage.endpoint", "should match"),
    "endpoint with a path": ({"spec.storage.endpoint": "http://s3/x"}, "spec.storage.endpoint", "should match"),
    "endpoint with keys": ({"spec.storage.endpoint": "http://k:s@s3"}, "spec.storage.endpoint", "should match"),
    "region in upper case": ({"spec.storage.region": "EU"}, "spec.storage.region", "should match"),
    "unknown addressing": ({"spec.storage.addressing": "dns"}, "spec.storage.addressing", "Unsupported value"),
    "unknown checksums": ({"spec.storage.checksums": "never"}, "spec.storage.checksums", "Unsupported value"),
    "keys in the manifest": ({"spec.storage.accessKey": "AKIA"}, "spec.storage.accessKey", "unknown field"),
    "credentials without a name": (
        {"spec.storage.credentialsSecretRef": {}}, "spec.storage.credentialsSecretRef.name", "Required value",
    ),
    "credentials with a slash": (
        {"spec.storage.credentialsSecretRef.name": "a/b"}, "spec.storage.credentialsSecretRef.name", "should match",
    ),
    "certificates without a name": (
        {"spec.storage.caConfigMapRef": {"key": "ca.crt"}}, "spec.storage.caConfigMapRef.name", "Required value",
    ),
    # compute
    "image with a space": ({"spec.compute.image": "a b"}, "spec.compute.image", "should match"),
    "image with an option": ({"spec.compute.image": "--privileged"}, "spec.compute.image", "should match"),
    "image with a NUL": ({"spec.compute.image": "a\0b"}, "spec.compute.image", "should match"),
    "label of the operator's own": (
        {"spec.compute.podLabels": {"finetune.dev/job": "x"}}, "spec.compute", "podLabels: a key is reserved",
    ),
    "label that Services select": (
        {"spec.compute.podLabels": {"app.kubernetes.io/name": "x"}}, "spec.compute", "podLabels: a key is reserved",
    ),
    "no AppArmor": (
        {"spec.compute.podAnnotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}},
        "spec.compute", "podAnnotations: a key is reserved",
    ),
    "a volume for the sidecar": (
        {"spec.compute.podAnnotations": {"sidecar.istio.io/userVolume": "{}"}}, "spec.compute",
        "podAnnotations: a key is reserved",
    ),
    "priority of Kubernetes' own": (
        {"spec.compute.priorityClassName": "system-node-critical"}, "spec.compute", "one of Kubernetes' own",
    ),
    "17 GPUs": ({"spec.compute.gpusPerNode": 17}, "spec.compute.gpusPerNode", "less than or equal to 16"),
    "no node": ({"spec.compute.nodes": 0}, "spec.compute.nodes", "greater than or equal to 1"),
    "65 nodes": ({"spec.compute.nodes": 65}, "spec.compute.nodes", "less than or equal to 64"),
    "Unsloth on two GPUs": (
        {"spec.training.backend": "unsloth", "spec.compute.gpusPerNode": 2}, "spec", "unsloth trains on one GPU",
    ),
    "Unsloth on two nodes": (
        {"spec.training.backend": "unsloth", "spec.compute.nodes": 2}, "spec", "unsloth trains on one GPU",
    ),
    "negative GPUs": ({"spec.compute.gpusPerNode": -1}, "spec.compute.gpusPerNode", "greater than or equal to 0"),
    "GPU resource with a space": ({"spec.compute.gpuResource": "n v"}, "spec.compute.gpuResource", "should match"),
    "CPUs for GPUs": ({"spec.compute.gpuResource": "cpu"}, "spec.compute.gpuResource", "should match"),
    "memory in gigabyte": (
        {"spec.compute.resources.requests": {"memory": "4GB"}}, "spec.compute.resources.requests.memory",
        "should match",
    ),
    "cpu as a number": (
        {"spec.compute.resources.limits": {"cpu": 4}}, "spec.compute.resources.limits.cpu", "of type string",
    ),
    "scratch without a number": ({"spec.compute.scratch.size": "big"}, "spec.compute.scratch.size", "should match"),
    "node label with a space": (
        {"spec.compute.nodeSelector": {"disk": "s s d"}}, "spec.compute.nodeSelector.disk", "should match",
    ),
    "node label with a bad key": ({"spec.compute.nodeSelector": {"a b": "x"}}, "spec.compute.nodeSelector", "key"),
    "33 node labels": (
        {"spec.compute.nodeSelector": {f"k{n}": "v" for n in range(33)}}, "spec.compute.nodeSelector", "at most 32",
    ),
    "unknown taint effect": (
        {"spec.compute.tolerations": [{"effect": "Never"}]}, "spec.compute.tolerations[0].effect", "Unsupported value",
    ),
    "whole pod spec": ({"spec.compute.hostNetwork": True}, "spec.compute.hostNetwork", "unknown field"),
    "no time to stop": (
        {"spec.compute.terminationGracePeriodSeconds": 0}, "spec.compute.terminationGracePeriodSeconds", "equal to 1",
    ),
    "negative attempts": ({"spec.backoffLimit": -1}, "spec.backoffLimit", "greater than or equal to 0"),
    "no time to start": ({"spec.startupDeadlineSeconds": 0}, "spec.startupDeadlineSeconds", "equal to 1"),
    "no time to run": ({"spec.activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "equal to 1"),
    "a year and a second": ({"spec.activeDeadlineSeconds": 31536001}, "spec.activeDeadlineSeconds", "31536000"),
    "a negative ttl": ({"spec.ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished", "equal to 0"),
    "suspend as text": ({"spec.suspend": "yes"}, "spec.suspend", "boolean"),
    "early stopping with nothing to look at": (
        {"spec.training.earlyStopping": {"patience": 2}}, "spec", "training.earlyStopping needs dataset.validation",
    ),
    "no patience": (
        {"spec.training.earlyStopping": {"patience": 0}}, "spec.training.earlyStopping.patience", "equal to 1",
    ),
    "a task with nothing to measure on": ({"spec.evaluation.task": "chat"}, "spec", "evaluation.task needs"),
    "a task for preferences": (
        {**PREFERENCES, "spec.evaluation.task": "chat"}, "spec", "needs dataset.validation and method sft",
    ),
    "an unknown task": ({"spec.evaluation.task": "poetry"}, "spec.evaluation.task", "Unsupported value"),
    "a gate with nothing to measure on": (
        {"spec.evaluation.gate": [{"metric": "evalLoss", "maximum": 1}]}, "spec", "evaluation.gate needs",
    ),
    "one fold": ({FOLDED: {"folds": 1}}, f"{FOLDED}.folds", "greater than or equal to 2"),
    "11 folds": ({FOLDED: {"folds": 11}}, f"{FOLDED}.folds", "less than or equal to 10"),
    "cross-validation of no folds": ({FOLDED: {}}, f"{FOLDED}.folds", "Required value"),
    "a gate on folds that are not there": (
        {**HELD_OUT, "spec.evaluation.gate": [FOLD_LOSS]}, "spec", "needs training.crossValidation",
    ),
    "a gate on folds and on what is not measured": (
        {**FOLDS, "spec.evaluation.gate": [FOLD_LOSS, {"metric": "evalLoss", "maximum": 1}]}, "spec",
        "needs dataset.validation, but for crossValidationLoss",
    ),
    "folds better than a base that is not measured": (
        {**FOLDS, "spec.evaluation.gate": [{"metric": "crossValidationLoss", "minImprovement": 0}]},
        "spec.evaluation.gate[0]", "minImprovement does not apply to it",
    ),
    "a gate without a limit": (
        {**HELD_OUT, "spec.evaluation.gate": [{"metric": "evalLoss"}]}, "spec.evaluation.gate[0]", "at least one of",
    ),
    "a prompt of nothing": ({"spec.evaluation.samplePrompts": [""]}, "spec.evaluation.samplePrompts[0]", "at least 1"),
    "17 prompts": ({"spec.evaluation.samplePrompts": ["a"] * 17}, "spec.evaluation.samplePrompts", "at most 16"),
    "a term without a counterpart": (
        {"spec.evaluation.bias": {"terms": [["nurse"]]}}, "spec.evaluation.bias.terms[0]", "at least 2",
    ),
    "pairs from many places": (
        {"spec.evaluation.bias": {"pairsURI": "s3://data/*.csv"}}, "spec.evaluation.bias", "must not contain",
    ),
    "counterfactual preferences": (
        {**PREFERENCES, f"{PREPARE}.counterfactuals": ["gender"]}, "spec", "counterfactuals applies to method sft only",
    ),
    "an unknown group": ({f"{PREPARE}.counterfactuals": ["height"]}, f"{PREPARE}.counterfactuals[0]", "Unsupported"),
    "a quantised model to merge": (
        {"spec.model.quantization": "nf4", "spec.output.merged": True}, "spec", "output.merged needs",
    ),
    "signed by any key": (
        {"spec.output.signing": {"keySecretRef": {"name": "keys", "key": "tls.key"}}},
        "spec.output.signing.keySecretRef.key", "unknown field",
    ),
    "signed by another namespace": (
        {"spec.output.signing": {"keySecretRef": {"name": "a/b"}}},
        "spec.output.signing.keySecretRef.name", "should match",
    ),
    # tracking
    "tracked by nothing": ({"spec.tracking": {"uri": "http://a"}}, "spec.tracking.tool", "Required value"),
    "tracked by something else": ({"spec.tracking": {"tool": "neptune"}}, "spec.tracking.tool", "Unsupported value"),
    "MLflow nowhere": ({"spec.tracking": {"tool": "mlflow"}}, "spec.tracking", "tool mlflow needs uri"),
    "MLflow in a folder": (
        {"spec.tracking": {"tool": "mlflow", "uri": "file:///tmp"}}, "spec.tracking.uri", "should match",
    ),
    "a password in the address": (
        {"spec.tracking": {"tool": "mlflow", "uri": "https://me:word@mlflow"}}, "spec.tracking.uri", "should match",
    ),
    "W&B without a key": ({"spec.tracking": {"tool": "wandb"}}, "spec.tracking", "wandb needs credentialsSecretRef"),
    "TensorBoard with an address": (
        {"spec.tracking": {"tool": "tensorboard", "uri": "http://tb"}}, "spec.tracking", "leave uri and experiment out",
    ),
    "TensorBoard with a key": (
        {"spec.tracking": {"tool": "tensorboard", "credentialsSecretRef": {"name": "k"}}}, "spec.tracking",
        "needs no credentialsSecretRef",
    ),
    "101 attempts": ({"spec.backoffLimit": 101}, "spec.backoffLimit", "less than or equal to 100"),
}  # fmt: skip

ACCEPTED: dict[str, dict[str, Any]] = {
    "the least": {},
    "name of 52 characters": {"metadata.name": "a" * 52},
    "hub model with all that belongs to it": {
        "spec.model": {"uri": "hf://a.b/c_d", "revision": "refs/pr/1", "tokenSecretRef": SECRET, "maxLength": 16},
    },
    "model on a claim": {"spec.model.uri": "pvc://models/llama/1b"},
    "a claim's root": {"spec.model.uri": "pvc://models"},
    "glob and limit": {f"{SOURCE}.uri": "s3://data/**/*.jsonl", f"{SOURCE}.limit": 10, f"{SOURCE}.format": "messages"},
    "key with .. inside a name": {f"{SOURCE}.uri": "s3://data/a..b.jsonl"},
    "16 sources": {"spec.dataset.sources": [{"uri": "s3://data/a"}] * 16},
    "all that is done to data": {
        "spec.dataset": {
            "sources": [{"uri": "s3://data/a.csv.gz", "format": "alpaca", "fields": {"instruction": "Frage Nr. 1/ä"}}],
            "validation": {"sources": [{"uri": "s3://data/b.parquet"}], "seed": 1},
            "preparation": {
                "normalizeText": False, "deduplicate": "near", "nearThreshold": 0.9, "overlength": "truncate",
                "minTokens": 4, "maxInvalidFraction": 0.01, "redact": ["email", "secret"],
            },
        },
    },
    "preferences": {"spec.training": {"epochs": 1, "method": "dpo", "beta": 0.2}, f"{SOURCE}.format": "preference"},
    "an adapter to go on from": {
        "spec.model.adapterURI": "s3://adapters/a", "spec.model.quantization": "nf4",
        "spec.model.chatTemplate": "{{ messages }}\n", f"{LORA}.variant": "dora",
    },
    "folds alone": {**FOLDS, "spec.evaluation.gate": [FOLD_LOSS]},
    "folds with all that goes with them": {
        **HELD_OUT, **PREFERENCES, "spec.compute": {"nodes": 2, "gpusPerNode": 8},
        "spec.training": {
            "epochs": 1, "method": "dpo", "crossValidation": {"folds": 10}, "earlyStopping": {},
        },
        "spec.evaluation.gate": [FOLD_LOSS, {"metric": "evalLoss", "minImprovement": 0}],
    },
    "stopped early": {**HELD_OUT, "spec.training.earlyStopping": {}},
    "all that can be found out": {
        **HELD_OUT,
        "spec.evaluation": {
            "task": "classification", "maxSamples": 10, "maxNewTokens": 8, "samplePrompts": ["Ça va?\n"],
            "bias": {"terms": [["nurse", "doctor"]], "pairsURI": "s3://data/pairs.csv"},
            "gate": [{"metric": "accuracy", "minimum": 0.9, "minImprovement": 0}],
        },
        f"{PREPARE}.counterfactuals": ["gender", "age"],
    },
    "checkpoints": {"spec.training.checkpoints": {"everySteps": 50, "keep": 3}, "spec.training.stallSeconds": 600},
    "steps": {"spec.training": {"maxSteps": 1}},
    "part of an epoch": {"spec.training.epochs": 0.25},
    "some modules": {f"{LORA}.targetModules": ["q_proj", "v_proj"]},
    "placeholders": {"spec.output.uri": "s3://out/{namespace}/{name}"},
    "storage of our own": {
        "spec.storage": {
            "endpoint": "https://s3.example:9000/", "region": "eu-west-1", "addressing": "path",
            "checksums": "whenRequired", "credentialsSecretRef": {"name": "s3.keys"},
            "caConfigMapRef": {"name": "ca"},
        },
    },
    "no GPU": {"spec.compute.gpusPerNode": 0},
    "many nodes with many GPUs": {"spec.compute": {"nodes": 64, "gpusPerNode": 16}},
    "Unsloth without a GPU": {"spec.training.backend": "unsloth", "spec.compute.gpusPerNode": 0},
    "the whole pod": {
        "spec.compute": {
            "image": "registry.example:5000/t/trainer@sha256:" + "0" * 64, "gpuResource": "amd.com/gpu",
            "resources": {"requests": {"cpu": "500m", "memory": "1.5Gi"}, "limits": {"memory": "2Gi"}},
            "scratch": {"size": "100Gi", "storageClassName": "fast"},
            "nodeSelector": {"kubernetes.io/arch": "amd64", "empty": ""},
            "tolerations": [{"operator": "Exists"}, {"key": "gpu", "value": "a100", "effect": "NoSchedule"}],
            "serviceAccountName": "finetune", "imagePullSecrets": [{"name": "registry"}],
            "priorityClassName": "batch", "podLabels": {"team": "a"},
            "podAnnotations": {"example.com/why": "b c", "sidecar.istio.io/inject": "false"},
            "terminationGracePeriodSeconds": 300,
        },
    },
    "signed": {"spec.output.signing": {"keySecretRef": {"name": "team-key"}}},
    "MLflow": {
        "spec.tracking": {
            "tool": "mlflow", "uri": "https://example.com:5000/mlflow/", "experiment": "/Shared/Support bot",
            "credentialsSecretRef": {"name": "mlflow"},
        },
    },
    "W&B": {
        "spec.tracking": {"tool": "wandb", "experiment": "company/bots", "credentialsSecretRef": {"name": "wandb"}},
    },
    "TensorBoard": {"spec.tracking": {"tool": "tensorboard"}},
    "null is absent": {"spec.model": {"uri": "hf://a/b", "revision": None}},
    "no second attempt": {"spec.backoffLimit": 0},
    "suspended from the start": {"spec.suspend": True},
    "all deadlines": {"spec.startupDeadlineSeconds": 60, "spec.activeDeadlineSeconds": 1},
    "gone at once": {"spec.ttlSecondsAfterFinished": 0},
}  # fmt: skip

IMMUTABLE: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model": {"uri": "s3://models/other/"}}, "model is immutable"),
    "a longer length": ({"model": {"maxLength": 4096}}, "model is immutable"),
    "another data set": ({"dataset": {"sources": [{"uri": "s3://data/b"}]}}, "dataset is immutable"),
    "one source more": (
        {"dataset": {"sources": [{"uri": "s3://data/train.jsonl"}, {"uri": "s3://data/b"}]}}, "dataset is immutable",
    ),
    "more epochs": ({"training": {"epochs": 2}}, "training is immutable"),
    "steps for epochs": ({"training": {"epochs": None, "maxSteps": 5}}, "training is immutable"),
    "another rank": ({"training": {"lora": {"rank": 8}}}, "training is immutable"),
    "a lower gate": ({"evaluation": {"maxSamples": 5}}, "evaluation is immutable"),
    "another output": ({"output": {"uri": "s3://adapters/b"}}, "output is immutable"),
    "a tracker that was absent": ({"tracking": {"tool": "tensorboard"}}, "tracking is immutable"),
    "storage that was absent": ({"storage": {"endpoint": "http://s3"}}, "storage is immutable"),
}  # fmt: skip

COMPUTE: dict[str, dict[str, Any]] = {
    "more memory": {"compute": {"resources": {"limits": {"memory": "2Gi"}}}},
    "another image": {"compute": {"image": "other"}},
    "a node selector taken away": {"compute": {"nodeSelector": None}},
}

ALLOWED_PATCHES: dict[str, dict[str, Any]] = {
    "labels": {"metadata": {"labels": {"team": "a"}}},
    "annotations": {"metadata": {"annotations": {"example.com/note": "b"}}},
    "suspend": {"spec": {"suspend": True}},
    "more attempts": {"spec": {"backoffLimit": 5}},
    "deadlines": {"spec": {"startupDeadlineSeconds": 60, "activeDeadlineSeconds": 3600}},
    "a time to live": {"spec": {"ttlSecondsAfterFinished": 60}},
}
