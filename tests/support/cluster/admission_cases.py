"""Manifests that the API server must accept or reject, as changes to a valid one."""

from __future__ import annotations

from typing import Any

from tests.support.cluster.invalid_runtime_specs import INVALID_RUNTIME_SPECS
from tests.support.cluster.invalid_training_specs import INVALID_TRAINING_SPECS
from tests.support.cluster.manifests import (
    DPO_TRAINING,
    FIVE_FOLDS,
    FOLD_LOSS_GATE,
    LORA,
    PREPARATION,
    SECRET,
    SOURCE,
    VALIDATION_SPLIT,
)

REJECTED = INVALID_TRAINING_SPECS | INVALID_RUNTIME_SPECS

ACCEPTED: dict[str, dict[str, Any]] = {
    "the least": {},
    "name of 52 characters": {"metadata.name": "a" * 52},
    "hub model with all that belongs to it": {
        "spec.model": {"uri": "hf://a.b/c_d", "revision": "refs/pr/1", "tokenSecretRef": SECRET, "maxLength": 16},
    },
    "model on a claim": {"spec.model.uri": "pvc://models/llama/1b"},
    "a claim's root": {"spec.model.uri": "pvc://models"},
    "hub data with all that belongs to it": {
        f"{SOURCE}.uri": "hf://datasets/a.b/c_d", f"{SOURCE}.subset": "en", f"{SOURCE}.split": "train",
        "spec.dataset.tokenSecretRef": SECRET,
    },
    "data on a claim": {f"{SOURCE}.uri": "pvc://data/rows/**/*.jsonl"},
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
    "an adapter to start from": {
        "spec.model.adapterURI": "s3://adapters/a", "spec.model.quantization": "nf4",
        "spec.model.chatTemplate": "{{ messages }}\n", f"{LORA}.variant": "dora",
    },
    "only folds": {**FIVE_FOLDS, "spec.evaluation.gate": [FOLD_LOSS_GATE]},
    "folds with all related settings": {
        **VALIDATION_SPLIT, **DPO_TRAINING, "spec.compute": {"nodes": 2, "gpusPerNode": 8},
        "spec.training": {
            "epochs": 1, "method": "dpo", "crossValidation": {"folds": 10}, "earlyStopping": {},
        },
        "spec.evaluation.gate": [FOLD_LOSS_GATE, {"metric": "evalLoss", "minImprovement": 0}],
    },
    "a GGUF file of the adapter": {"spec.output.gguf": "q8_0", "spec.model.quantization": "nf4"},
    "a GGUF file of a merged DoRA": {
        "spec.output.gguf": "bf16", "spec.output.merged": True, "spec.training.lora.variant": "dora",
    },
    "stopped early": {**VALIDATION_SPLIT, "spec.training.earlyStopping": {}},
    "all that can be found out": {
        **VALIDATION_SPLIT,
        "spec.evaluation": {
            "task": "classification", "maxSamples": 10, "maxNewTokens": 8, "samplePrompts": ["Ça va?\n"],
            "bias": {"terms": [["nurse", "doctor"]], "pairsURI": "s3://data/pairs.csv"},
            "gate": [{"metric": "accuracy", "minimum": 0.9, "minImprovement": 0}],
        },
        f"{PREPARATION}.counterfactuals": ["gender", "age"],
    },
    "test data and no validation data": {
        "spec.evaluation": {
            "task": "chat", "test": {"sources": [{"uri": "s3://data/test.jsonl"}, {"uri": "hf://datasets/a/b"}]},
            "baselines": [{"name": "old", "adapterURI": "s3://adapters/old"}],
            "gate": [{"metric": "testLoss", "maximum": 2}, {"metric": "testChrf", "minImprovement": 0}],
        },
    },
    "graders of all kinds": {
        **VALIDATION_SPLIT,
        "spec.evaluation": {
            "graders": [
                {"name": "label", "stringCheck": {"reference": "{{item.label}}", "ignoreCase": True}},
                {"name": "total", "numeric": {"input": "{{ sample.output_json.sums.0.total }}", "tolerance": 0.01}},
                {"name": "proof", "math": {"reference": "{{reference.output_text}}"}},
                {"name": "shape", "jsonSchema": {"schema": "{}"}},
                {"name": "call", "toolCall": {"arguments": "subset"}},
                {"name": "close", "textSimilarity": {"metric": "chrf", "reference": "a text {with} braces"}},
                {"name": "short", "length": {"maximum": 20}},
                {"name": "all", "weighted": {"terms": [{"grader": "label"}, {"grader": "short", "weight": 0.5}]}},
            ],
            "maxUngradedFraction": 0,
            "gate": [{"metric": "all", "minimum": 0.5}, {"metric": "label", "minImprovement": 0}],
        },
    },
    "a reward": {
        "spec.training": {
            "epochs": 1, "method": "grpo", "lossType": "drGrpo", "batchSize": 4, "gradientAccumulation": 2,
            "rollout": {"generations": 4, "maxNewTokens": 64, "temperature": 0.7, "beta": 0.01},
            "rewards": [{"grader": "label"}, {"grader": "short", "weight": 0.1}],
        },
        "spec.evaluation.graders": [
            {"name": "label", "stringCheck": {}}, {"name": "short", "length": {"maximum": 20}},
        ],
    },
    "a reward with defaults": {
        **VALIDATION_SPLIT,
        "spec.training": {"epochs": 1, "method": "rloo", "rewards": [{"grader": "label"}]},
        "spec.evaluation": {
            "graders": [{"name": "label", "stringCheck": {}}], "gate": [{"metric": "label", "minimum": 0.5}],
        },
    },
    "judges and services": {
        **VALIDATION_SPLIT,
        "spec.evaluation": {
            "graders": [
                {
                    "name": "quality",
                    "judge": {
                        "endpoint": "judges", "model": "org/model", "instructions": "Is it right?\n", "minimum": 1,
                        "maximum": 5, "maxTokens": 64,
                    },
                },
                {"name": "mine", "http": {"endpoint": "b", "itemFields": ["label"]}},
            ],
            "endpoints": [
                {
                    "name": "judges", "uri": "http://vllm.judges:8000/v1", "credentialsSecretRef": {"name": "key"},
                    "timeoutSeconds": 5, "concurrency": 8, "maxCalls": 100,
                },
                {"name": "b", "uri": "https://[2001:db8::1]/grade"},
            ],
        },
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
    "the complete pod": {
        "spec.compute": {
            "profile": "h100-rdma.v2",
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
    "sharded over nodes, with steps of a fixed size": {
        "spec.training": {
            "epochs": 1, "globalBatchSize": 64, "batchSize": 4, "batching": "paddingFree",
            "warmupSteps": 10, "minLearningRateRatio": 0.1, "scheduler": "warmupStableDecay", "optimizer": "adamw8bit",
        },
        "spec.compute": {"nodes": 2, "gpusPerNode": 8, "sharding": "full"}, f"{LORA}.variant": "rslora",
    },
    "kernels of Liger": {"spec.training": {"epochs": 1, "kernels": "liger"}},
    "sharded preferences by length": {
        **DPO_TRAINING, "spec.compute.sharding": "full", f"{SOURCE}.format": "preference",
        "spec.training": {"epochs": 1, "method": "dpo", "batching": "byLength", "globalBatchSize": 8},
    },
    "step of a fixed size on the CPU": {
        "spec.training": {"epochs": 1, "globalBatchSize": 6}, "spec.compute": {"nodes": 3, "gpusPerNode": 0},
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

IMMUTABLE_CHANGES: dict[str, tuple[dict[str, Any], str]] = {
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

COMPUTE_CHANGES: dict[str, dict[str, Any]] = {
    "more memory": {"compute": {"resources": {"limits": {"memory": "2Gi"}}}},
    "another image": {"compute": {"image": "other"}},
    "a node selector taken away": {"compute": {"nodeSelector": None}},
    "more nodes and GPUs": {"compute": {"nodes": 2, "gpusPerNode": 4}},
    "a sharded base model": {"compute": {"sharding": "full"}},
}

ALLOWED_PATCHES: dict[str, dict[str, Any]] = {
    "labels": {"metadata": {"labels": {"team": "a"}}},
    "annotations": {"metadata": {"annotations": {"example.com/note": "b"}}},
    "suspend": {"spec": {"suspend": True}},
    "more attempts": {"spec": {"backoffLimit": 5}},
    "deadlines": {"spec": {"startupDeadlineSeconds": 60, "activeDeadlineSeconds": 3600}},
    "a time to live": {"spec": {"ttlSecondsAfterFinished": 60}},
}
