"""What a run needs on its scratch volume, in bytes by part. docs/how-to/plan.md has the formulas."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.inputs.base_model import HubModelSource, lists_all_weights
from finetune_trainer.inputs.resolve import ResolvedInputs

log = logging.getLogger(__name__)

_LOCAL_CHECKPOINTS = 3
"""Checkpoints that are on the volume at the same time: one that training has resumed from or that waits, one that is
written, and one that is uploaded."""
_FP32_BYTES = 4
_MOMENT_BYTES = 8
"""Bytes of the two moments of AdamW per parameter of the adapter."""
_MOMENT_BYTES_8BIT = 2 + 8 / 256
"""The same in 8 bits, with two scales in fp32 for each block of 256 parameters."""
_MIN_8BIT_PARAMETERS = 4096
"""Tensors with fewer parameters keep their moments in 32 bits."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a base model and its adapter."""

    parameters: int
    adapter_parameters: int
    adapter_tensors: int
    small_adapter_parameters: int = 0
    """Parameters of the adapter in tensors that are too small for moments in 8 bits."""


def count_small_parameters(tensor_sizes: Iterable[int]) -> int:
    """Return the parameters of the tensors that are too small for moments in 8 bits."""
    return sum(size for size in tensor_sizes if size < _MIN_8BIT_PARAMETERS)


def list_download_parts(resolved: ResolvedInputs, model_bytes: int) -> dict[str, int]:
    """Return what is known from the listing of the inputs. `model_bytes` is what is downloaded of the base model.

    Rows are counted as large in tokens as in the data. Texts were measured to take 1.5 to 2.5 times as much, rows of a
    few words 8 times; rows with columns that are not used, or that are rejected, take less.
    """
    model = resolved.model
    if isinstance(model, HubModelSource) and not lists_all_weights(model.snapshot):
        log.info("scratch: the hub does not list the size of all weights, so they are not checked against the volume")
    data_bytes = sum(listing.size for listing in resolved.data)
    adapter_bytes = resolved.size - model.size - data_bytes
    return {"base model": model_bytes, "adapters": adapter_bytes, "data": data_bytes, "prepared data": data_bytes}


def list_training_parts(
    config: TrainerConfig, sizes: ModelSizes, steps: int, bytes_per_parameter: int
) -> dict[str, int]:
    """Return what the training and the publication write. `bytes_per_parameter` is that of the merged model."""
    checkpoint_bytes = estimate_checkpoint_bytes(config, sizes, steps)
    adapter_bytes = sizes.adapter_parameters * _FP32_BYTES
    if config.training.early_stopping:  # checkpoints have the best adapter too
        checkpoint_bytes += adapter_bytes
    merged_bytes = sizes.parameters * bytes_per_parameter if config.output.merged else 0
    gguf_parts = {"GGUF files": adapter_bytes + merged_bytes} if config.output.gguf != "none" else {}
    return {
        "checkpoints": _LOCAL_CHECKPOINTS * checkpoint_bytes,
        "new adapter": adapter_bytes,
        "merged model": merged_bytes,
        **gguf_parts,
    }


def estimate_checkpoint_bytes(config: TrainerConfig, sizes: ModelSizes, steps: int) -> int:
    """Estimate the last checkpoint: adapter, moments of AdamW, tensor names, and a log line per step."""
    adapter_bytes = sizes.adapter_parameters * _FP32_BYTES
    return adapter_bytes + _estimate_moment_bytes(config, sizes) + sizes.adapter_tensors * 1000 + steps * 280 + 20_000


def _estimate_moment_bytes(config: TrainerConfig, sizes: ModelSizes) -> int:
    is_8bit = config.training.optimizer != "adamw"
    parameters_8bit = sizes.adapter_parameters - sizes.small_adapter_parameters if is_8bit else 0
    other_parameters = sizes.adapter_parameters - parameters_8bit
    return other_parameters * _MOMENT_BYTES + round(parameters_8bit * _MOMENT_BYTES_8BIT)
