"""Loads base models whose weights are stored quantized. Heavy imports happen inside functions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.quantization_methods import DEQUANTIZED_METHODS, find_stored_method
from finetune_trainer.modeling.model_config import choose_model_class, load_model_config

if TYPE_CHECKING:
    import torch
    from transformers import FineGrainedFP8Config, Mxfp4Config, PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


def load_checked_config(config: TrainerConfig, model_dir: Path) -> PreTrainedConfig:
    """Read config.json. Raises `MODEL_UNSUPPORTED` for a model that is no language model, and `CONFIG_INVALID` if
    `model.quantization` does not agree with its weights."""
    model_config = load_model_config(model_dir)
    choose_model_class(model_config)
    _check_setting(config, model_config)
    return model_config


def get_stored_method(model_config: PreTrainedConfig) -> str | None:
    """Return how the weights of a model are stored, or None if they are not quantized."""
    return find_stored_method(model_config.to_dict())


def _check_setting(config: TrainerConfig, model_config: PreTrainedConfig) -> None:
    """Raise `CONFIG_INVALID` unless `model.quantization` agrees with the weights of a model that is stored quantized.

    For bitsandbytes it must name the same method, since the library is imported before the model is downloaded.
    """
    method, configured = get_stored_method(model_config), config.model.quantization
    if method in DEQUANTIZED_METHODS and config.output.merged:  # transformers does not save such models completely
        message = (
            f"output.merged does not support base models whose weights are stored in {method}; set it to false, or use "
            "the unquantized model"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    expected = "none" if method in DEQUANTIZED_METHODS else method
    if method is None or configured == expected:
        return
    reason = (
        f"the weights of the base model are stored in {method} and converted to the precision of the run"
        if method in DEQUANTIZED_METHODS
        else f"the weights of the base model are stored in {method} of bitsandbytes"
    )
    raise TrainerError(Reason.CONFIG_INVALID, f"model.quantization is {configured}, but {reason}; set it to {expected}")


def build_dequantization_config(model_config: PreTrainedConfig) -> Mxfp4Config | FineGrainedFP8Config | None:
    """Return the settings with which transformers dequantizes the weights of a model while it loads them, or None if
    they are stored in another way."""
    from transformers import FineGrainedFP8Config, Mxfp4Config

    method = get_stored_method(model_config)
    if method not in DEQUANTIZED_METHODS:
        return None
    log.info("the weights of the base model are stored in %s and dequantized", method)
    return (Mxfp4Config if method == "mxfp4" else FineGrainedFP8Config)(dequantize=True)


def convert_to_run_precision(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make a model that was stored quantized compute in the precision of the run.

    Layers of bitsandbytes would use the precision that is stored with them, and transformers dequantizes mxfp4 to
    bfloat16 only.
    """
    import torch

    for module in base.modules():
        if type(module).__name__ == "Linear4bit":  # bitsandbytes is imported only if `model.quantization` needs it
            module.compute_dtype = dtype
    for parameter in base.parameters():
        if parameter.dtype == torch.bfloat16:
            parameter.data = parameter.data.to(dtype)
