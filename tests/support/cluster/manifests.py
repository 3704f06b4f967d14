"""A valid FineTuneJob, and copies of it with changes."""

from __future__ import annotations

import copy
from typing import Any

from finetune_operator.api import API_VERSION, KIND

Manifest = dict[str, Any]

ABSENT = object()


def build_valid_manifest(name: str = "good") -> Manifest:
    """Return a FineTuneJob with the required fields only."""
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


def apply_changes(manifest: Manifest, changes: dict[str, Any]) -> Manifest:
    """Return a copy with values set by dotted path. A number is the index of a list; ABSENT removes the field."""
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
PREPARATION = "spec.dataset.preparation"
LORA = "spec.training.lora"
SECRET = {"name": "hub-token"}

VALIDATION_SPLIT = {"spec.dataset.validation": {"fraction": 0.1}}
CROSS_VALIDATION = "spec.training.crossValidation"
FIVE_FOLDS = {CROSS_VALIDATION: {"folds": 5}}
FOLD_LOSS_GATE = {"metric": "crossValidationLoss", "maximum": 2.5}
DPO_TRAINING = {
    "spec.training": {"epochs": 1, "method": "dpo"}, f"{SOURCE}.format": "preference", **VALIDATION_SPLIT,
}  # fmt: skip
