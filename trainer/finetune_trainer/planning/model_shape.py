"""Counts the parameters of a model and its adapter on the `meta` device of torch, without loading weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling import stored_quantization
from finetune_trainer.modeling.lora import list_adapter_sizes
from finetune_trainer.modeling.model_config import build_meta_model
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.planning import weights
from finetune_trainer.training.scratch_needs import count_small_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model and its adapter."""

    parameters: int
    """Parameters of the base model, as stored in its files."""
    quantizable: int
    """Parameters of the linear layers except the output head, which are the ones that are quantized."""
    trainable: int
    """Parameters of the adapter."""
    adapter_tensors: int
    """Number of tensors of the adapter."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    key_value_size: int
    """Elements of the keys of a token in a layer, and of its values."""
    max_positions: int | None = None
    """Maximum length of a text in tokens, if it is limited."""
    small_adapter_parameters: int = 0
    """Parameters of the adapter in tensors that are too small for moments in 8 bits."""


def compute_model_shape(config: TrainerConfig, model_dir: Path) -> ModelShape:
    """Return the sizes. Raises `MODEL_INVALID` for invalid files, `CONFIG_INVALID` for invalid target modules."""
    model_config = stored_quantization.load_checked_config(config, model_dir)
    is_quantized = stored_quantization.get_stored_method(model_config) is not None
    meta_model = build_meta_model(model_config)
    # Quantized weights are stored packed, so that their files do not tell the number of parameters.
    parameters = meta_model.num_parameters() if is_quantized else weights.count_parameters(model_dir)
    text_config, adapter_sizes = meta_model.config.get_text_config(), list_adapter_sizes(config, meta_model, model_dir)
    return ModelShape(
        parameters=parameters,
        quantizable=_count_quantizable(meta_model),
        trainable=sum(adapter_sizes),
        adapter_tensors=len(adapter_sizes),
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        intermediate_size=_get_intermediate_size(text_config),
        vocab_size=meta_model.get_input_embeddings().weight.shape[0],
        key_value_size=_compute_key_value_size(text_config),
        max_positions=get_max_positions(meta_model.config),
        small_adapter_parameters=count_small_parameters(adapter_sizes),
    )


def _count_quantizable(meta_model: PreTrainedModel) -> int:
    import torch

    output_head = meta_model.get_output_embeddings()
    linear_layers = (
        module for module in meta_model.modules() if isinstance(module, torch.nn.Linear) and module is not output_head
    )
    return sum(layer.weight.numel() for layer in linear_layers)


def _get_intermediate_size(text_config: PreTrainedConfig) -> int:
    """Return the largest width of the feed-forward layers, or four times the hidden size if the config has none."""
    size = text_config.to_dict().get("intermediate_size") or 4 * text_config.hidden_size
    return max(size) if isinstance(size, list) else int(size)


def _compute_key_value_size(text_config: PreTrainedConfig) -> int:
    """Return the number of key-value heads times their size. Without these fields it is at most the hidden size."""
    values = text_config.to_dict()
    heads = values.get("num_attention_heads")
    key_value_heads = values.get("num_key_value_heads") or heads
    head_size = values.get("head_dim") or (text_config.hidden_size // heads if heads else None)
    return int(key_value_heads * head_size) if key_value_heads and head_size else int(text_config.hidden_size)
