"""What a run needs on a GPU, in bytes by phase and use. docs/how-to/plan.md has the formulas. Needs no torch.

The activations are those of a decoder of transformers with adapters of PEFT, as TRL trains it. In 16 bits, the forward
pass runs under autocast, and the adapter is in 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.batch_limits import (
    LOGIT_CHUNK_TOKENS,
    MAX_GENERATION_PROMPTS,
    MAX_GENERATION_TOKENS,
    limit_loss_tokens,
    limit_new_tokens,
)
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.model_shape import ModelShape

GPU_SIZES_GB = (16, 24, 40, 80, 141)
"""Memory of common GPUs, in units of 10^9 bytes."""
FREE_SHARE = 1.1
"""Factor on the estimate that leaves room for its errors."""
CONTEXT_BYTES = 1_500_000_000
"""CUDA context, workspaces of its libraries, and fragmentation of the allocator."""
_CHUNK_LOGIT_BYTES = 16
"""TRL's chunked loss: logits, logarithmic probabilities, probabilities and their product, all in fp32."""
_FULL_LOGIT_BYTES = {2: 14, 4: 12}
"""By bytes per value: the logits in fp32, their logarithmic probabilities and the gradient, and those in 16 bits."""
_LOSS_LOGIT_BYTES = {2: 10, 4: 8}
"""Without gradients: the logits in fp32 and their logarithmic probabilities, and those in 16 bits."""
_FEW_LOGIT_BYTES = 12
"""Of a batch that is not larger than a chunk, the logits of all tokens and a copy of those of supervised tokens."""
_PROBE_LOGIT_BYTES = 16
"""The export compares the logits of the adapter in memory and on disk, in fp32: both, their difference and its absolute
value."""
_PROBE_TOKENS = 32
_FP32_BYTES = 4
_MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2, "pagedAdamw8bit": 2}
"""Two moments for each parameter of the adapter. Those in 8 bits have a scale for each block of 256 values."""
_BYTES_PER_QUANTIZED_PARAMETER = {"none": None, "int8": 1.0, "nf4": 0.516}
"""nf4 has half a byte. With double quantization, the scale of each block of 64 parameters has 8 bits, and each 256 of
them have one in 32 bits: together 0.127 bits for a parameter (Dettmers et al., 2023, section 3,
https://arxiv.org/abs/2305.14314)."""
_GATHERED_LAYERS = 2
"""The layer that is computed, and the next one, which is gathered in the meantime."""


@dataclass(frozen=True)
class RowTokens:
    """The lengths of the rows as far as they determine the memory."""

    longest: int
    """Tokens of the longest row."""
    per_pass: int
    """Tokens of the largest forward pass, including padding. A row of `dpo` counts once."""
    sequences: int
    """Sequences of that pass."""


def limit_rows(config: TrainerConfig) -> RowTokens:
    """Return the lengths if rows have up to `model.maxLength` tokens."""
    longest, sequences = config.model.max_length, config.training.batch_size
    if config.training.effective_batching == "paddingFree":
        return RowTokens(longest, sequences * longest, 1)
    return RowTokens(longest, sequences * longest, sequences)


def measure_rows(config: TrainerConfig, lengths: npt.NDArray[np.int64]) -> RowTokens:
    """Return the lengths for rows of these numbers of tokens.

    A padded batch is as large as its longest row requires. The rows of `paddingFree` are summed in a random order like
    that of the training.
    """
    training, longest = config.training, int(lengths.max())
    if training.effective_batching == "packed":
        return RowTokens(longest, training.batch_size * config.model.max_length, training.batch_size)
    if training.effective_batching == "paddingFree":
        order = np.random.default_rng(training.seed).permutation(len(lengths))
        sums = np.add.reduceat(lengths[order], np.arange(0, len(lengths), training.batch_size))
        return RowTokens(longest, int(sums.max()), 1)
    rows = min(training.batch_size, len(lengths))
    return RowTokens(longest, rows * longest, rows)


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak memory on a GPU in bytes, by use and by phase."""

    base: int
    """The frozen base model, or this rank's share of it."""
    gathered: int
    """Parameters of a sharded base model that are complete for a while."""
    adapter: int
    """The adapter with its gradients and the moments of the optimizer."""
    activations: int
    """What the backward pass needs of all layers and, for the layer that it is at, in addition."""
    logits: int
    """Logits of the tokens that the loss processes at once."""
    context: int
    training: int
    """Peak of the training: base, gathered, adapter, context, and activations with logits. Logits and the work on a
    layer are not in memory at the same time."""
    load: int
    """Peak while the weights are read."""
    evaluation: int
    """Peak of the evaluation after the training."""
    export: int
    """Peak of the export, which merges the adapter into the base model with `output.merged`."""

    @property
    def total(self) -> int:
        """The peak of all phases."""
        return max(self.load, self.training, self.evaluation, self.export)

    def fits(self, capacity: float) -> bool:
        """Return whether the run fits so many bytes, with a margin of 10 % for errors of the estimate."""
        return self.total * FREE_SHARE <= capacity

    def fits_by_gpu_size(self) -> Mapping[int, bool]:
        """Return for each GPU size in GB whether the run fits."""
        return {size: self.fits(size * 1e9) for size in GPU_SIZES_GB}


def estimate_memory(
    config: TrainerConfig, shape: ModelShape, rows: RowTokens | None = None, ranks_per_model: int = 1
) -> MemoryEstimate:
    """Estimate the peak on each GPU, for rows of these lengths or of up to `model.maxLength` tokens.

    `ranks_per_model` is the number of ranks that share the base model. Precision `auto` counts as 16 bits.
    """
    width = get_value_bytes(config)
    rows = rows or limit_rows(config)
    base = estimate_base_bytes(config, shape, ranks_per_model)
    gathered = _estimate_gathered_bytes(shape, width) if ranks_per_model > 1 else 0
    adapter_weights = shape.trainable * _FP32_BYTES
    adapter = _estimate_adapter_bytes(config, shape)
    stored, work = _estimate_activation_bytes(config, shape, rows)
    logits = _estimate_logit_bytes(config, shape, rows)
    resident = base + gathered + CONTEXT_BYTES
    evaluation = resident + adapter_weights + _estimate_evaluation_bytes(config, shape, rows)
    return MemoryEstimate(
        base=base,
        gathered=gathered,
        adapter=adapter,
        activations=stored + work,
        logits=logits,
        context=CONTEXT_BYTES,
        training=resident + adapter + max(stored + max(work, logits), _estimate_rollout_bytes(config, shape, rows)),
        load=base + CONTEXT_BYTES + max(adapter_weights, _estimate_read_bytes(config, shape)),
        evaluation=evaluation,
        export=_estimate_export_bytes(config, shape, evaluation, resident + adapter_weights),
    )


def get_value_bytes(config: TrainerConfig) -> int:
    """Return the bytes of a value in the precision of the run. Precision `auto` counts as 16 bits."""
    return 4 if config.training.precision == "fp32" else 2


def estimate_base_bytes(config: TrainerConfig, shape: ModelShape, ranks_per_model: int = 1) -> int:
    """Estimate the weights of the base model on each GPU."""
    width, quantized_bytes = get_value_bytes(config), _BYTES_PER_QUANTIZED_PARAMETER[config.model.quantization]
    if quantized_bytes is None:
        return -(-shape.parameters * width // ranks_per_model)
    return round((shape.parameters - shape.quantizable) * width + shape.quantizable * quantized_bytes)


def _estimate_gathered_bytes(shape: ModelShape, width: int) -> int:
    """Estimate the complete parameters of the layers at work and of embeddings, final norm and head, which are one
    unit that stays complete from the first layer to the loss."""
    unit = shape.parameters - shape.num_layers * shape.layer_parameters
    return width * (_GATHERED_LAYERS * shape.layer_parameters + max(unit, 0))


def _estimate_adapter_bytes(config: TrainerConfig, shape: ModelShape) -> int:
    """Estimate the adapter, its gradients, the moments, and the copy that is a reference model."""
    weights = 2 + get_method(config).copies_adapter(config)
    return shape.trainable * (weights * _FP32_BYTES + _MOMENT_BYTES[config.training.optimizer])


def _estimate_activation_bytes(config: TrainerConfig, shape: ModelShape, rows: RowTokens) -> tuple[int, int]:
    """Return what all layers keep until the backward pass, and what the layer at work needs in addition."""
    width, copies = get_value_bytes(config), get_method(config).sequences_per_row
    tokens = rows.per_pass * copies
    mask_bytes = _estimate_mask_bytes(rows, width, copies)
    layer = tokens * _estimate_layer_bytes(config, shape, width) + mask_bytes
    work = tokens * _estimate_work_bytes(shape)
    if not config.training.gradient_checkpointing:
        return shape.num_layers * layer, work
    return shape.num_layers * tokens * shape.hidden_size * width, layer + work


def _estimate_layer_bytes(config: TrainerConfig, shape: ModelShape, width: int) -> int:
    """Estimate what a layer keeps of a token.

    Norms keep their input in 32 bits. Attention keeps queries, keys, values and its result; its kernels do not store
    the scores (Korthikanti et al., 2022, section 4, https://arxiv.org/abs/2205.05198). The feed-forward layer keeps
    gate, activation and up. An adapter keeps its input, and the product with its first matrix. PEFT converts each input
    to the precision of the adapter, and autocast converts it back, so that in 16 bits each adapter has a copy. In 32
    bits, adapters share the result of the norm or of attention, and the product of the feed-forward layer.
    """
    attention = 2 * shape.attention_size + 2 * shape.key_value_size
    shared_inputs = 2 * shape.hidden_size + shape.intermediate_size
    inputs = shape.adapter_input_size if width == 2 else min(shape.adapter_input_size, shared_inputs)
    products = config.training.lora.rank * shape.adapter_tensors // (2 * shape.num_layers)
    return _FP32_BYTES * shape.norm_size + width * (attention + 3 * shape.intermediate_size + inputs + products)


def _estimate_work_bytes(shape: ModelShape) -> int:
    """Estimate the gradients of a token at the output of the feed-forward layer.

    They are those of its input from the base model and from the adapter. In 16 bits, that of the adapter is there in 16
    and in 32 bits while it is converted, so that both precisions have 8 bytes.
    """
    return 8 * shape.intermediate_size + 2 * shape.hidden_size


def _estimate_mask_bytes(rows: RowTokens, width: int, copies: int) -> int:
    """Estimate the mask of padding or of the rows in a sequence, which attention keeps in the precision of the run."""
    if rows.sequences == 1 and rows.per_pass == rows.longest:
        return 0
    return copies * rows.sequences * (rows.per_pass // rows.sequences) ** 2 * width


def _estimate_logit_bytes(config: TrainerConfig, shape: ModelShape, rows: RowTokens) -> int:
    """Estimate the logits with their gradient. A chunked loss holds those of one chunk."""
    method = get_method(config)
    tokens = rows.per_pass * method.sequences_per_row
    if method.chunks_logits:
        return min(LOGIT_CHUNK_TOKENS, tokens) * shape.vocab_size * _CHUNK_LOGIT_BYTES
    return tokens * shape.vocab_size * _FULL_LOGIT_BYTES[get_value_bytes(config)]


def _estimate_evaluation_bytes(config: TrainerConfig, shape: ModelShape, rows: RowTokens) -> int:
    """Estimate what the losses of rows need in addition to the model, or the answers if that is more."""
    width = get_value_bytes(config)
    loss_tokens = max(rows.longest, min(limit_loss_tokens(config, shape.max_positions), rows.per_pass))
    layer = _estimate_forward_bytes(shape, width)
    logit_bytes = _FEW_LOGIT_BYTES if loss_tokens <= LOGIT_CHUNK_TOKENS else _LOSS_LOGIT_BYTES[width]
    logits = min(LOGIT_CHUNK_TOKENS, loss_tokens) * shape.vocab_size * logit_bytes
    losses = loss_tokens * shape.hidden_size * width + max(loss_tokens * layer, logits)
    if not (config.evaluation.scores_answers or config.evaluation.sample_prompts):
        return losses
    return max(losses, _estimate_answer_bytes(config, shape, rows, layer))


def _estimate_forward_bytes(shape: ModelShape, width: int) -> int:
    """Estimate what a layer needs of a token without gradients: the input of the layer and that of the norm, and the
    larger of attention and of the feed-forward layer. The latter has the activation of the gate, the result of the base
    model, that of the adapter, and their sum."""
    feed_forward = 4 * width * shape.intermediate_size
    attention = width * (3 * shape.attention_size + 2 * shape.key_value_size) + _FP32_BYTES * shape.hidden_size
    return 2 * width * shape.hidden_size + max(feed_forward, attention)


def _estimate_answer_bytes(config: TrainerConfig, shape: ModelShape, rows: RowTokens, layer: int) -> int:
    """Estimate the key-value cache, the layer at work on the prompts, and the logits of one token for each prompt."""
    width, answered_tokens = get_value_bytes(config), rows.longest + limit_new_tokens(config)
    tokens = min(MAX_GENERATION_PROMPTS * answered_tokens, max(MAX_GENERATION_TOKENS, answered_tokens))
    cache = 2 * shape.num_layers * shape.key_value_size * tokens * width
    prompts = max(tokens // answered_tokens, 1)
    prompt_tokens = prompts * rows.longest
    logits = prompts * shape.vocab_size * _LOSS_LOGIT_BYTES[width]
    return cache + prompt_tokens * (layer + shape.hidden_size * width) + logits


def _estimate_rollout_bytes(config: TrainerConfig, shape: ModelShape, rows: RowTokens) -> int:
    """Estimate the generation of the answers of a step, which are generated together: the key-value cache, the layer at
    work on the prompts, and the logits of one token for each. `rows` has the tokens of prompts with their answers."""
    training, width = config.training, get_value_bytes(config)
    if not training.is_policy_method:
        return 0
    answers = training.batch_size * training.gradient_accumulation
    cache = 2 * shape.num_layers * shape.key_value_size * answers * rows.longest * width
    prompt_tokens = answers * max(rows.longest - training.effective_rollout.max_new_tokens, 1)
    prompts = prompt_tokens * (_estimate_forward_bytes(shape, width) + shape.hidden_size * width)
    return cache + prompts + answers * shape.vocab_size * _LOSS_LOGIT_BYTES[width]


def _estimate_read_bytes(config: TrainerConfig, shape: ModelShape) -> int:
    """Estimate what loading needs besides the loaded weights. Each tensor is read to its place; one that is quantized
    is there in 16 bits as well."""
    return shape.largest_linear * get_value_bytes(config) if config.model.quantization != "none" else 0


def _estimate_export_bytes(config: TrainerConfig, shape: ModelShape, evaluation: int, resident: int) -> int:
    """Estimate the export, which loads the adapter once more to compare its logits. A merge measures the losses of the
    evaluation, then adds the adapter to one layer after the other in 32 bits: the weight, its copy, the update and the
    sum."""
    probes = shape.trainable * _FP32_BYTES + _PROBE_TOKENS * shape.vocab_size * _PROBE_LOGIT_BYTES
    if not config.output.merged:
        return resident + probes
    return max(evaluation, resident + max(probes, shape.largest_linear * 4 * _FP32_BYTES))
