"""The shape of a model and of its adapter, counted on torch's `meta` device: no weight is loaded, no memory needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.library_errors import translate_model_errors
from finetune_trainer.modeling.loading import load_model_config
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.planning import weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model and of the adapter on it."""

    parameters: int
    """Of the base model, as its files have them."""
    quantizable: int
    """Those in linear layers but the output head: what quantisation makes smaller."""
    trainable: int
    """The adapter's."""
    adapter_tensors: int
    """That they are stored in."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int | None = None
    """Tokens of the longest text, if there is a limit."""


def compute_model_shape(config: TrainerConfig, model_dir: Path) -> ModelShape:
    """Raises `MODEL_INVALID` for files that are no model, `CONFIG_INVALID` for modules that cannot have an adapter."""
    meta_model = _build_meta_model(model_dir)
    text_config, adapter_sizes = meta_model.config.get_text_config(), _list_adapter_sizes(config, meta_model)
    return ModelShape(
        parameters=weights.count_parameters(model_dir),
        quantizable=_count_quantizable(meta_model),
        trainable=sum(adapter_sizes),
        adapter_tensors=len(adapter_sizes),
        num_layers=text_config.num_hidden_layers,
        hidden_size=text_config.hidden_size,
        intermediate_size=_get_intermediate_size(text_config),
        vocab_size=meta_model.get_input_embeddings().weight.shape[0],
        max_positions=get_max_positions(meta_model.config),
    )


def _build_meta_model(model_dir: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    model_config = load_model_config(model_dir)
    with translate_model_errors(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(model_config, trust_remote_code=False)


def _count_quantizable(meta_model: PreTrainedModel) -> int:
    import torch

    output_head = meta_model.get_output_embeddings()
    linear_layers = (
        module for module in meta_model.modules() if isinstance(module, torch.nn.Linear) and module is not output_head
    )
    return sum(layer.weight.numel() for layer in linear_layers)


def _list_adapter_sizes(config: TrainerConfig, meta_model: PreTrainedModel) -> list[int]:
    """Parameters of each tensor that is trained."""
    import torch

    from finetune_trainer.modeling.lora import add_adapter

    with torch.device("meta"):
        adapted = add_adapter(config, meta_model)
    return [parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad]


def _get_intermediate_size(text_config: PreTrainedConfig) -> int:
    """Width of the feed-forward layers; families without the usual name use four times the hidden size."""
    return int(text_config.to_dict().get("intermediate_size") or 4 * text_config.hidden_size)
