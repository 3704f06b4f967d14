"""Compares an adapter with a copy that PEFT loaded from its files. Imports torch, so import it after the backend."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from peft import PeftModel

_MAX_NAMES = 3
"""Names of modules in a message."""


def find_unrestored_modules(model: PeftModel, copy_name: str) -> list[str]:
    """Return the paths of the adapted modules whose weights in the adapter `copy_name` differ from the trained ones.

    PEFT converts names of weights when it loads an adapter, for example of experts, and only warns about a weight that
    it does not find then, which keeps its initial value.
    """
    trained, restored = _collect_weights(model, "default"), _collect_weights(model, copy_name)
    names = {name for name, weight in trained.items() if not _are_equal(weight, restored.get(name))}
    return sorted({get_module_path(name) for name in names | (restored.keys() - trained.keys())})


def get_module_path(weight_name: str) -> str:
    """Return the path in the base model of the module that a weight of the adapter belongs to."""
    return re.split(r"\.(?:lora_|token_adapter)", weight_name.removeprefix("base_model.model."))[0]


def describe_modules(paths: list[str]) -> str:
    """Return the first paths, as a part of a message."""
    return ", ".join(paths[:_MAX_NAMES]) + (", …" if len(paths) > _MAX_NAMES else "")


def _collect_weights(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter, by name without that of the adapter."""
    pattern = re.compile(rf"\.{adapter_name}(?=\.|$)")
    return {pattern.sub("", name): weight for name, weight in model.named_parameters() if pattern.search(name)}


def _are_equal(weight: torch.Tensor, other: torch.Tensor | None) -> bool:
    return other is not None and torch.equal(weight, other.to(weight.dtype))
