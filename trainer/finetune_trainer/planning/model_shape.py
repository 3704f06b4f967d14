"""Counts the parameters of a base model in its files, and measures its other sizes without loading weights."""

from __future__ import annotations

from pathlib import Path

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling import stored_quantization
from finetune_trainer.modeling.model_config import build_meta_model
from finetune_trainer.planning import weights
from finetune_trainer.training.model_shape import ModelShape, measure_shape


def compute_model_shape(config: TrainerConfig, model_dir: Path) -> ModelShape:
    """Return the sizes. Raises `MODEL_INVALID` for invalid files, `CONFIG_INVALID` for invalid target modules."""
    model_config = stored_quantization.load_checked_config(config, model_dir)
    is_quantized = stored_quantization.get_stored_method(model_config) is not None
    # Quantized weights are stored packed, so that their files do not tell the number of parameters.
    parameters = None if is_quantized else weights.count_parameters(model_dir)
    return measure_shape(config, build_meta_model(model_config), model_dir, parameters)
