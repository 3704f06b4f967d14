"""Quantization of the frozen base model with bitsandbytes. Heavy imports happen inside functions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def build_quantization_config(config: TrainerConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Return the quantization config for transformers, or None."""
    from transformers import BitsAndBytesConfig

    if config.model.quantization == "none":
        return None
    if config.model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_quantization(config: TrainerConfig, base: PreTrainedModel) -> None:
    """Raise `CONFIG_INVALID` if a linear layer other than the output head is not quantized: some loaders fall back to
    16 bits without a message."""
    if config.model.quantization == "none":
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
    from torch.nn import Linear

    # It logs for every layer in every step that inputs are cast to 16 bits, as int8 requires.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    expected_type = Linear4bit if config.model.quantization == "nf4" else Linear8bitLt
    output_head = base.get_output_embeddings()
    layers = {
        name: layer for name, layer in base.named_modules() if isinstance(layer, Linear) and layer is not output_head
    }
    unquantized = [name for name, layer in layers.items() if not isinstance(layer, expected_type)]
    if unquantized or not layers:
        problem = f"{len(unquantized)} of {len(layers)} layers are not quantized, such as {(unquantized or ['all'])[0]}"
        message = (
            f"model.quantization {config.model.quantization} does not work for this model on this machine: {problem}"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    for layer in layers.values():
        if isinstance(layer, Linear4bit):
            # On a CPU it would repack its weights at the first evaluation and compute wrong gradients from then on.
            layer.support_avx512bf16_for_cpu = False
