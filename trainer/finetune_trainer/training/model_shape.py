"""Sizes of a base model and its adapter, measured on the `meta` device of torch, without weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.language_part import find_language_prefix
from finetune_trainer.modeling.lora import list_adapter_sizes
from finetune_trainer.modeling.positions import get_max_positions
from finetune_trainer.modeling.unsupported_options import list_unsupported_options
from finetune_trainer.training.scratch_needs import ModelSizes, count_small_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a base model and its adapter, in elements unless stated otherwise."""

    parameters: int
    """Parameters of the base model, as stored in its files."""
    quantizable: int
    """Parameters of the linear layers except the output head, which are the ones that are quantized."""
    layer_parameters: int
    """Parameters of one layer of the language part."""
    largest_linear: int
    """Parameters of the largest linear layer except the output head."""
    trainable: int
    """Parameters of the adapter."""
    adapter_tensors: int
    """Number of tensors of the adapter."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    attention_size: int
    """Elements of the queries of a token in a layer."""
    key_value_size: int
    """Elements of the keys of a token in a layer, and of its values."""
    norm_size: int
    """Elements of a token that the norms of a layer read."""
    adapter_input_size: int
    """Elements of a token that the adapters of a layer read."""
    max_positions: int | None = None
    """Maximum length of a text in tokens, if it is limited."""
    small_adapter_parameters: int = 0
    """Parameters of the adapter in tensors that are too small for moments in 8 bits."""
    unsupported: frozenset[str] = frozenset()
    """Options that the base model does not support; see `list_unsupported_options`."""

    @property
    def sizes(self) -> ModelSizes:
        """What the scratch volume depends on."""
        return ModelSizes(self.parameters, self.trainable, self.adapter_tensors, self.small_adapter_parameters)


def measure_shape(
    config: TrainerConfig, meta_model: PreTrainedModel, model_dir: Path, parameters: int | None = None
) -> ModelShape:
    """Return the sizes of a model on the `meta` device, which gets an adapter. `parameters` is their number in its
    files, if it is known. Raises `CONFIG_INVALID` for invalid target modules."""
    text_config = meta_model.config.get_text_config()
    num_layers = text_config.num_hidden_layers
    prefix = find_language_prefix(meta_model)
    query_size, key_value_size = _compute_attention_sizes(text_config)
    head, linear_layers = meta_model.get_output_embeddings(), list(_iterate_linear_layers(meta_model))
    linear_sizes = [layer.weight.numel() for layer in linear_layers if layer is not head]
    norm_size = sum(_iterate_norm_sizes(meta_model, prefix, query_size, key_value_size)) // num_layers
    unsupported = list_unsupported_options(config, meta_model)
    parameter_sizes = {name: parameter.numel() for name, parameter in meta_model.named_parameters()}
    layer_sizes = [size for name, size in parameter_sizes.items() if _is_in_layer(name, prefix)]
    adapter_sizes = list_adapter_sizes(config, meta_model, model_dir)
    return ModelShape(
        parameters=parameters or sum(parameter_sizes.values()),
        quantizable=sum(linear_sizes),
        layer_parameters=sum(layer_sizes) // num_layers,
        largest_linear=max(linear_sizes, default=0),
        trainable=sum(adapter_sizes),
        adapter_tensors=len(adapter_sizes),
        num_layers=num_layers,
        hidden_size=text_config.hidden_size,
        intermediate_size=_get_intermediate_size(text_config),
        vocab_size=meta_model.get_input_embeddings().weight.shape[0],
        attention_size=query_size,
        key_value_size=key_value_size,
        norm_size=norm_size or 2 * text_config.hidden_size,
        adapter_input_size=sum(_iterate_adapter_inputs(meta_model)) // num_layers,
        max_positions=get_max_positions(meta_model.config),
        small_adapter_parameters=count_small_parameters(adapter_sizes),
        unsupported=unsupported,
    )


def _iterate_linear_layers(meta_model: PreTrainedModel) -> Iterator[torch.nn.Linear]:
    import torch

    yield from (module for module in meta_model.modules() if isinstance(module, torch.nn.Linear))


def _is_in_layer(name: str, prefix: str) -> bool:
    """Return whether a path of the language part has the number of a layer."""
    return name.startswith(prefix) and re.search(r"\.\d+\.", name) is not None


def _iterate_norm_sizes(
    meta_model: PreTrainedModel, prefix: str, query_size: int, key_value_size: int
) -> Iterator[int]:
    """Yield for each norm in a layer how many elements of a token it reads. Norms of queries and keys have the size of
    a head, and read all heads."""
    for name, module in meta_model.named_modules():
        weights = list(module.parameters(recurse=False))
        if _is_in_layer(name, prefix) and type(module).__name__.endswith("Norm") and weights:
            sizes = {"q_norm": query_size, "k_norm": key_value_size}
            yield sizes.get(name.rpartition(".")[2], weights[0].numel())


def _iterate_adapter_inputs(adapted: PreTrainedModel) -> Iterator[int]:
    from peft.tuners.lora import LoraLayer

    yield from (module.in_features for module in adapted.modules() if isinstance(module, LoraLayer))


def _get_intermediate_size(text_config: PreTrainedConfig) -> int:
    """Return the largest width of the feed-forward layers, or four times the hidden size if the config has none."""
    size = text_config.to_dict().get("intermediate_size") or 4 * text_config.hidden_size
    return max(size) if isinstance(size, list) else int(size)


def _compute_attention_sizes(text_config: PreTrainedConfig) -> tuple[int, int]:
    """Return the elements of the queries of a token and of its keys: heads times their size. Without these fields both
    are at most the hidden size."""
    values, hidden_size = text_config.to_dict(), int(text_config.hidden_size)
    heads = values.get("num_attention_heads")
    if not heads:
        return hidden_size, hidden_size
    head_size = values.get("head_dim") or hidden_size // heads
    return int(heads * head_size), int((values.get("num_key_value_heads") or heads) * head_size)
