"""Estimates the time, scratch space and checkpoint size of a run. docs/how-to/plan.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training import scratch_needs
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.model_shape import ModelShape

GPU_TFLOPS = {"L4": 121, "A100": 312, "H100": 989}
"""Dense 16-bit tensor operations per second, in units of 10^12, from the data sheets of the vendors."""
FLOPS_UTILISATION = 0.35
"""Fraction of these operations that fine-tuning achieves. Published values are between 0.25 and 0.45."""
_FLOPS_PER_PASS = 2
"""FLOPs per token and parameter of the base model: one multiplication and one addition in a forward pass, and the same
in a backward pass through frozen weights, which need no gradients (Kaplan et al., 2020, section 2.1,
https://arxiv.org/abs/2001.08361)."""


def estimate_seconds(config: TrainerConfig, shape: ModelShape, tokens: int) -> dict[str, float]:
    """Estimate the training time by type of GPU. Gradient checkpointing adds one forward pass."""
    passes = get_method(config).forward_passes + 1 + config.training.gradient_checkpointing
    flops = tokens * shape.parameters * _FLOPS_PER_PASS * passes
    return {gpu: flops / (tflops * 1e12 * FLOPS_UTILISATION) for gpu, tflops in GPU_TFLOPS.items()}


def estimate_scratch(
    config: TrainerConfig, shape: ModelShape, steps: int, stored_parts: Mapping[str, int]
) -> dict[str, int]:
    """Return what the run needs on its scratch volume in bytes by part: `stored_parts` are the inputs and the prepared
    data. Precision `auto` counts as 16 bits."""
    bytes_per_parameter = 4 if config.training.precision == "fp32" else 2
    return {**stored_parts, **scratch_needs.list_training_parts(config, shape.sizes, steps, bytes_per_parameter)}


def estimate_checkpoint_bytes(config: TrainerConfig, shape: ModelShape, steps: int) -> int:
    """Estimate the last checkpoint: adapter, moments of AdamW, tensor names, and a log line per step."""
    return scratch_needs.estimate_checkpoint_bytes(config, _get_sizes(shape), steps)


def _get_sizes(shape: ModelShape) -> scratch_needs.ModelSizes:
    return scratch_needs.ModelSizes(
        shape.parameters, shape.trainable, shape.adapter_tensors, shape.small_adapter_parameters
    )
