"""Estimates of the memory, time and bytes of a run. Nothing here is measured; docs/how-to/plan.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.planning.model_shape import ModelShape
from finetune_trainer.training.methods import get_method

GPU_SIZES_GB = (16, 24, 40, 80, 141)
"""Memory of the usual GPUs, in 10^9 bytes as they are sold."""
GPU_TFLOPS = {"L4": 121, "A100": 312, "H100": 989}
"""Dense 16-bit tensor operations per second, in 10^12, from the makers' data sheets."""
FLOPS_UTILISATION = 0.35
"""Part of them that fine-tuning reaches: between 0.25 and 0.45 where it is published."""
_LOGIT_CHUNK_TOKENS = 256  # learnt tokens whose logits TRL's loss holds at once
_ADAMW_BYTES_PER_PARAMETER = 16  # bytes per trainable parameter: itself, its gradient and AdamW's two moments, all fp32
_CUDA_CONTEXT_BYTES = 1.5e9  # CUDA's own, its libraries' workspaces and the allocator's gaps
_FLOPS_PER_PASS = 2
"""FLOPs per token and parameter of the base model: one multiplication and one addition in a forward pass, and the same
in a backward pass through frozen weights, which need no gradients (Kaplan et al., 2020, section 2.1,
https://arxiv.org/abs/2001.08361)."""
_BYTES_PER_QUANTIZED_PARAMETER = {"none": None, "int8": 1.0, "nf4": 0.5625}
"""Per packed parameter; nf4 has an fp32 scale per block of 64."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the GPU at the peak, by what they hold."""

    base: int
    adapter: int
    activations: int
    logits: int
    context: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.adapter + self.activations + self.logits + self.context

    def fits_by_gpu_size(self) -> Mapping[int, bool]:
        """GPU sizes in GB, and whether it fits with a tenth to spare: these are estimates."""
        return {size: self.total * 1.1 <= size * 1e9 for size in GPU_SIZES_GB}


def estimate_memory(config: TrainerConfig, shape: ModelShape) -> MemoryEstimate:
    """At the longest batch that the config allows. `auto` precision is counted as on a GPU, in 16 bits."""
    bytes_per_value = 4 if config.training.precision == "fp32" else 2
    rows = config.training.batch_size * get_method(config).sequences_per_row
    tokens = rows * config.model.max_length
    return MemoryEstimate(
        base=round(_estimate_base_bytes(config, shape, bytes_per_value)),
        adapter=shape.trainable * _ADAMW_BYTES_PER_PARAMETER,
        activations=_estimate_activation_bytes(shape, tokens * bytes_per_value, config.training.gradient_checkpointing),
        logits=_estimate_logit_bytes(config, shape, tokens),
        context=round(_CUDA_CONTEXT_BYTES),
    )


def _estimate_base_bytes(config: TrainerConfig, shape: ModelShape, bytes_per_value: int) -> float:
    quantized_bytes = _BYTES_PER_QUANTIZED_PARAMETER[config.model.quantization]
    if quantized_bytes is None:
        return shape.parameters * bytes_per_value
    return (shape.parameters - shape.quantizable) * bytes_per_value + shape.quantizable * quantized_bytes


def _estimate_activation_bytes(shape: ModelShape, token_bytes: int, is_recomputed: bool) -> int:
    # Kept for the backward pass per token: norms, query, key, value, attention's and the block's results, each as
    # wide as the model, and the feed-forward's gate, up, activation and product.
    layer_bytes = token_bytes * (12 * shape.hidden_size + 4 * shape.intermediate_size)
    if not is_recomputed:
        return shape.num_layers * layer_bytes
    return shape.num_layers * token_bytes * shape.hidden_size + layer_bytes  # each layer's input, and one layer in full


def _estimate_logit_bytes(config: TrainerConfig, shape: ModelShape, tokens: int) -> int:
    """In fp32, with their gradient and one copy more; `sft` never holds those of all tokens at once."""
    tokens_at_once = min(_LOGIT_CHUNK_TOKENS, tokens) if get_method(config).chunks_logits else tokens
    return tokens_at_once * shape.vocab_size * 4 * 3


def estimate_seconds(config: TrainerConfig, shape: ModelShape, tokens: int) -> dict[str, float]:
    """Training time by GPU. Gradient checkpointing computes the forward pass twice."""
    passes = get_method(config).forward_passes + 1 + config.training.gradient_checkpointing
    flops = tokens * shape.parameters * _FLOPS_PER_PASS * passes
    return {gpu: flops / (tflops * 1e12 * FLOPS_UTILISATION) for gpu, tflops in GPU_TFLOPS.items()}


def estimate_checkpoint_bytes(shape: ModelShape, steps: int) -> int:
    """The last: the adapter and AdamW's two moments, in fp32, their names, a line per step, and the rest."""
    return shape.trainable * 12 + shape.adapter_tensors * 1000 + steps * 280 + 20_000
