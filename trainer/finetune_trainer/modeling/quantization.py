"""The frozen base model in 8 or 4 bits, by bitsandbytes. Heavy imports happen inside functions."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def settings(config: TrainerConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What transformers is told, or nothing."""
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


def check(config: TrainerConfig, base: PreTrainedModel) -> None:
    """Raise `CONFIG_INVALID` if any layer but the output head is held otherwise than asked for: some loaders fall back
    to 16 bits without a word."""
    if config.model.quantization == "none":
        return
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
    from torch.nn import Linear

    # It says of every layer, in every step, that inputs are cast to 16 bits; which is what int8 is.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

    kind = Linear4bit if config.model.quantization == "nf4" else Linear8bitLt
    head = base.get_output_embeddings()
    layers = {name: each for name, each in base.named_modules() if isinstance(each, Linear) and each is not head}
    other = [name for name, each in layers.items() if not isinstance(each, kind)]
    if other or not layers:
        what = f"{len(other)} of {len(layers)} layers are not quantised, such as {(other or ['all'])[0]}"
        message = f"model.quantization: {config.model.quantization} cannot be had for this model here: {what}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    for each in layers.values():
        if isinstance(each, Linear4bit):
            # On a CPU it would repack its weights at the first look at validation data, and learn wrongly from then on.
            each.support_avx512bf16_for_cpu = False
