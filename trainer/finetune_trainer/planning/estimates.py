"""Estimates the memory, time and checkpoint size of a run. docs/how-to/plan.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.batch_limits import (
    LOGIT_CHUNK_TOKENS,
    MAX_GENERATION_PROMPTS,
    MAX_GENERATION_TOKENS,
    limit_loss_tokens,
    limit_new_tokens,
)
from finetune_trainer.planning.model_shape import ModelShape
from finetune_trainer.training import scratch_needs
from finetune_trainer.training.methods import get_method

GPU_SIZES_GB = (16, 24, 40, 80, 141)
"""Memory of common GPUs, in units of 10^9 bytes."""
GPU_TFLOPS = {"L4": 121, "A100": 312, "H100": 989}
"""Dense 16-bit tensor operations per second, in units of 10^12, from the data sheets of the vendors."""
FLOPS_UTILISATION = 0.35
"""Fraction of these operations that fine-tuning achieves. Published values are between 0.25 and 0.45."""
_LOGIT_BYTES = 4 * 3  # fp32, with the gradient and one copy
_ADAMW_BYTES_PER_PARAMETER = {"adamw": 16, "adamw8bit": 10, "pagedAdamw8bit": 10}
"""By `training.optimizer`: the parameter and its gradient in fp32, and the two moments of AdamW in 32 or 8 bits."""
_CUDA_CONTEXT_BYTES = 1.5e9  # CUDA context, workspaces of its libraries, fragmentation of the allocator
_FLOPS_PER_PASS = 2
"""FLOPs per token and parameter of the base model: one multiplication and one addition in a forward pass, and the same
in a backward pass through frozen weights, which need no gradients (Kaplan et al., 2020, section 2.1,
https://arxiv.org/abs/2001.08361)."""
_BYTES_PER_QUANTIZED_PARAMETER = {"none": None, "int8": 1.0, "nf4": 0.5625}
"""nf4 has half a byte, and an fp32 scale for each block of 64 parameters (Dettmers et al., 2023, section 3,
https://arxiv.org/abs/2305.14314)."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory on the GPU in bytes, by its use."""

    base: int
    adapter: int
    activations: int
    logits: int
    context: int
    evaluation: int
    """Peak of the evaluation after the training, with base model, adapter and context."""

    @property
    def total(self) -> int:
        """The sum of all uses in the training, or the peak of the evaluation if that is more."""
        return max(self.base + self.adapter + self.activations + self.logits + self.context, self.evaluation)

    def fits_by_gpu_size(self) -> Mapping[int, bool]:
        """Return for each GPU size in GB whether the run fits, with a margin of 10 % for errors of the estimate."""
        return {size: self.total * 1.1 <= size * 1e9 for size in GPU_SIZES_GB}


def estimate_memory(config: TrainerConfig, shape: ModelShape) -> MemoryEstimate:
    """Estimate the memory for the longest batch that the config allows. Precision `auto` counts as 16 bits."""
    bytes_per_value = 4 if config.training.precision == "fp32" else 2
    rows = config.training.batch_size * get_method(config).sequences_per_row
    tokens = rows * config.model.max_length
    base = round(_estimate_base_bytes(config, shape, bytes_per_value))
    adapter = shape.trainable * (
        _ADAMW_BYTES_PER_PARAMETER[config.training.optimizer] + 4 * get_method(config).copies_adapter(config)
    )
    context = round(_CUDA_CONTEXT_BYTES)
    return MemoryEstimate(
        base=base,
        adapter=adapter,
        activations=_estimate_activation_bytes(shape, tokens * bytes_per_value, config.training.gradient_checkpointing),
        logits=_estimate_logit_bytes(config, shape, tokens),
        context=context,
        evaluation=base + adapter + context + _estimate_evaluation_bytes(config, shape, bytes_per_value),
    )


def _estimate_base_bytes(config: TrainerConfig, shape: ModelShape, bytes_per_value: int) -> float:
    quantized_bytes = _BYTES_PER_QUANTIZED_PARAMETER[config.model.quantization]
    if quantized_bytes is None:
        return shape.parameters * bytes_per_value
    return (shape.parameters - shape.quantizable) * bytes_per_value + shape.quantizable * quantized_bytes


def _estimate_activation_bytes(shape: ModelShape, token_bytes: int, is_recomputed: bool) -> int:
    # Kept per token for the backward pass: norms, query, key, value, the results of attention and of the block, each of
    # the hidden size, and gate, up, activation and product of the feed-forward layer. Compare Korthikanti et al., 2022,
    # section 4, https://arxiv.org/abs/2205.05198; attention kernels do not store the scores.
    layer_bytes = _estimate_layer_bytes(shape, token_bytes)
    if not is_recomputed:
        return shape.num_layers * layer_bytes
    return (
        shape.num_layers * token_bytes * shape.hidden_size + layer_bytes
    )  # the input of each layer, and one complete layer


def _estimate_layer_bytes(shape: ModelShape, token_bytes: int) -> int:
    return token_bytes * (12 * shape.hidden_size + 4 * shape.intermediate_size)


def _estimate_evaluation_bytes(config: TrainerConfig, shape: ModelShape, bytes_per_value: int) -> int:
    """Estimate what the losses of rows need in addition to the model, or the answers if that is more."""
    loss_tokens = max(config.model.max_length, limit_loss_tokens(config, shape.max_positions))
    loss_bytes = _estimate_layer_bytes(shape, loss_tokens * bytes_per_value)
    loss_bytes += min(LOGIT_CHUNK_TOKENS, loss_tokens) * shape.vocab_size * _LOGIT_BYTES
    if not (config.evaluation.task or config.evaluation.sample_prompts):
        return loss_bytes
    answered_tokens = config.model.max_length + limit_new_tokens(config)
    tokens = min(MAX_GENERATION_PROMPTS * answered_tokens, max(MAX_GENERATION_TOKENS, answered_tokens))
    cache_bytes = 2 * shape.num_layers * shape.key_value_size * tokens * bytes_per_value
    logit_bytes = MAX_GENERATION_PROMPTS * shape.vocab_size * _LOGIT_BYTES
    return max(loss_bytes, _estimate_layer_bytes(shape, tokens * bytes_per_value) + cache_bytes + logit_bytes)


def _estimate_logit_bytes(config: TrainerConfig, shape: ModelShape, tokens: int) -> int:
    """Estimate the logits in fp32, with their gradient and one copy. A chunked loss holds those of one chunk."""
    tokens_at_once = min(LOGIT_CHUNK_TOKENS, tokens) if get_method(config).chunks_logits else tokens
    return tokens_at_once * shape.vocab_size * _LOGIT_BYTES


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
    sizes = _get_sizes(shape)
    bytes_per_parameter = 4 if config.training.precision == "fp32" else 2
    return {**stored_parts, **scratch_needs.list_training_parts(config, sizes, steps, bytes_per_parameter)}


def estimate_checkpoint_bytes(config: TrainerConfig, shape: ModelShape, steps: int) -> int:
    """Estimate the last checkpoint: adapter, moments of AdamW, tensor names, and a log line per step."""
    return scratch_needs.estimate_checkpoint_bytes(config, _get_sizes(shape), steps)


def _get_sizes(shape: ModelShape) -> scratch_needs.ModelSizes:
    return scratch_needs.ModelSizes(
        shape.parameters, shape.trainable, shape.adapter_tensors, shape.small_adapter_parameters
    )
