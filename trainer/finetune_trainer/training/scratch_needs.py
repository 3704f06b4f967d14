"""What a run needs on its scratch volume, in bytes by part. docs/how-to/plan.md has the formulas."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.inputs.base_model import HubModelSource, lists_all_weights
from finetune_trainer.inputs.resolve import ResolvedInputs

log = logging.getLogger(__name__)

_LOCAL_CHECKPOINTS = 3
"""Checkpoints that are on the volume at the same time: one that training has resumed from or that waits, one that is
written, and one that is uploaded."""
_FP32_BYTES = 4
_ADAMW_VALUES = 3
"""Values of a checkpoint per parameter of the adapter: the parameter and the two moments of AdamW."""


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a base model and its adapter."""

    parameters: int
    adapter_parameters: int
    adapter_tensors: int


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
    checkpoint_bytes = estimate_checkpoint_bytes(sizes.adapter_parameters, sizes.adapter_tensors, steps)
    adapter_bytes = sizes.adapter_parameters * _FP32_BYTES
    if config.training.early_stopping:  # checkpoints have the best adapter too
        checkpoint_bytes += adapter_bytes
    return {
        "checkpoints": _LOCAL_CHECKPOINTS * checkpoint_bytes,
        "new adapter": adapter_bytes,
        "merged model": sizes.parameters * bytes_per_parameter if config.output.merged else 0,
    }


def estimate_checkpoint_bytes(adapter_parameters: int, adapter_tensors: int, steps: int) -> int:
    """Estimate the last checkpoint: adapter and AdamW moments in fp32, tensor names, and a log line per step."""
    return adapter_parameters * _ADAMW_VALUES * _FP32_BYTES + adapter_tensors * 1000 + steps * 280 + 20_000
