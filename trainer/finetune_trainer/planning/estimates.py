"""Estimates of the memory, time and bytes of a run. Nothing here is measured; docs/how-to/plan.md has the formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.planning.model_shape import Architecture

GPU_GB = (16, 24, 40, 80, 141)
"""Memory of the usual GPUs, in 10^9 bytes as they are sold."""
GPU_TFLOPS = {"L4": 121, "A100": 312, "H100": 989}
"""Dense 16-bit tensor operations per second, in 10^12, from the makers' data sheets."""
UTILISATION = 0.35
"""Part of them that fine-tuning reaches: between 0.25 and 0.45 where it is published."""
_LOGIT_CHUNK = 256  # learnt tokens whose logits TRL's loss holds at once
_ADAM = 16  # bytes per trainable parameter: itself, its gradient and AdamW's two moments, all fp32
_CONTEXT = 1.5e9  # CUDA's own, its libraries' workspaces and the allocator's gaps
_OPERATIONS = {"sft": 4, "dpo": 6, "kto": 6}
"""Per token and base parameter: forward 2, backward through frozen weights 2, the reference model's forward 2."""
_BYTES = {"none": None, "int8": 1.0, "nf4": 0.5625}
"""Per packed parameter; nf4 has an fp32 scale per block of 64."""


@dataclass(frozen=True)
class Memory:
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

    def fits(self) -> Mapping[int, bool]:
        """GPU sizes in GB, and whether it fits with a tenth to spare: these are estimates."""
        return {size: self.total * 1.1 <= size * 1e9 for size in GPU_GB}


def memory(config: TrainerConfig, shape: Architecture) -> Memory:
    """At the longest batch that the config allows. `auto` precision is counted as on a GPU, in 16 bits."""
    width = 4 if config.training.precision == "fp32" else 2
    rows = config.training.batch_size * (2 if config.training.method == "dpo" else 1)
    tokens = rows * config.model.max_length
    return Memory(
        base=round(_base(config, shape, width)),
        adapter=shape.trainable * _ADAM,
        activations=_activations(shape, tokens * width, config.training.gradient_checkpointing),
        logits=_logits(config, shape, tokens),
        context=round(_CONTEXT),
    )


def _base(config: TrainerConfig, shape: Architecture, width: int) -> float:
    packed = _BYTES[config.model.quantization]
    if packed is None:
        return shape.parameters * width
    return (shape.parameters - shape.packable) * width + shape.packable * packed


def _activations(shape: Architecture, token_bytes: int, recomputed: bool) -> int:
    # Kept for the backward pass per token: norms, query, key, value, attention's and the block's results, each as
    # wide as the model, and the feed-forward's gate, up, activation and product.
    layer = token_bytes * (12 * shape.hidden + 4 * shape.intermediate)
    if not recomputed:
        return shape.layers * layer
    return shape.layers * token_bytes * shape.hidden + layer  # each layer's input, and one layer in full


def _logits(config: TrainerConfig, shape: Architecture, tokens: int) -> int:
    """In fp32, with their gradient and one copy more; `sft` never holds those of all tokens at once."""
    at_once = min(_LOGIT_CHUNK, tokens) if config.training.method == "sft" else tokens
    return at_once * shape.vocabulary * 4 * 3


def seconds(config: TrainerConfig, shape: Architecture, tokens: int) -> dict[str, float]:
    """Training time by GPU. Gradient checkpointing computes the forward pass twice."""
    again = 2 if config.training.gradient_checkpointing else 0
    operations = tokens * shape.parameters * (_OPERATIONS[config.training.method] + again)
    return {gpu: operations / (tera * 1e12 * UTILISATION) for gpu, tera in GPU_TFLOPS.items()}


def checkpoint_bytes(shape: Architecture, steps: int) -> int:
    """The last: the adapter and AdamW's two moments, in fp32, their names, a line per step, and the rest."""
    return shape.trainable * 12 + shape.tensors * 1000 + steps * 280 + 20_000
