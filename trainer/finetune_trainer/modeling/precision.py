"""The number format of a run, as the machine allows it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch


def resolve_precision(config: TrainerConfig) -> str:
    """`bf16`, `fp16` or `fp32` on this machine. Raises `CONFIG_INVALID` for one that it cannot train in."""
    import torch

    asked, gpu = config.training.precision, torch.cuda.is_available()
    native_bf16 = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    if asked == "auto":
        return "fp32" if not gpu else "bf16" if native_bf16 else "fp16"
    if asked == "fp16" and not gpu:
        raise TrainerError(Reason.CONFIG_INVALID, "training.precision: fp16 needs a GPU; use auto, bf16 or fp32")
    if asked == "bf16" and gpu and not native_bf16:
        raise TrainerError(Reason.CONFIG_INVALID, "training.precision: this GPU has no bf16; use auto, fp16 or fp32")
    return asked


def dtype_of(precision: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]


def as_in_training(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """What the trainer computes in: on a GPU, 16 bits where base and adapter would be of two formats otherwise."""
    import torch

    mixed = device.type == "cuda" and precision != "fp32"
    return torch.autocast(device.type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16, enabled=mixed)
