"""Resolves the precision of a run on this machine."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch


def resolve_precision(config: TrainerConfig) -> str:
    """Return `bf16`, `fp16` or `fp32`. Raises `CONFIG_INVALID` if this machine does not support the precision."""
    import torch

    requested, has_gpu = config.training.precision, torch.cuda.is_available()
    has_native_bf16 = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if requested == "auto":
        return "fp32" if not has_gpu else "bf16" if has_native_bf16 else "fp16"
    if requested == "fp16" and not has_gpu:
        raise TrainerError(Reason.CONFIG_INVALID, "training.precision: fp16 needs a GPU; use auto, bf16 or fp32")
    if requested == "bf16" and has_gpu and not has_native_bf16:
        raise TrainerError(
            Reason.CONFIG_INVALID, "training.precision: this GPU does not support bf16; use auto, fp16 or fp32"
        )
    return requested


def get_dtype(precision: str) -> torch.dtype:
    """Return the torch type of a precision."""
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def autocast_like_training(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the autocast context of the trainer: 16 bits on a GPU if base model and adapter differ in their types."""
    import torch

    is_mixed = device.type == "cuda" and precision != "fp32"
    return torch.autocast(device.type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16, enabled=is_mixed)
