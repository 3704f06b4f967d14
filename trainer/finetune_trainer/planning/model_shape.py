"""The shape of a model and of its adapter, counted on torch's `meta` device: no weight is loaded, no memory needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.library_errors import model_errors
from finetune_trainer.modeling.loading import load_config
from finetune_trainer.modeling.positions import max_positions
from finetune_trainer.planning import weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Architecture:
    """Sizes of a base model and of the adapter on it."""

    parameters: int
    """Of the base model, as its files have them."""
    packable: int
    """Those in linear layers but the output head: what quantisation makes smaller."""
    trainable: int
    """The adapter's."""
    tensors: int
    """That they are stored in."""
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int | None = None
    """Tokens of the longest text, if there is a limit."""


def describe(config: TrainerConfig, model_dir: Path) -> Architecture:
    """Raises `MODEL_INVALID` for files that are no model, `CONFIG_INVALID` for modules that cannot have an adapter."""
    base = _skeleton(model_dir)
    shape, adapter = base.config.get_text_config(), _adapter(config, base)
    return Architecture(
        parameters=weights.parameters(model_dir),
        packable=_packable(base),
        trainable=sum(adapter),
        tensors=len(adapter),
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        intermediate=_intermediate(shape),
        vocabulary=base.get_input_embeddings().weight.shape[0],
        positions=max_positions(base.config),
    )


def _skeleton(model_dir: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    shape = load_config(model_dir)
    with model_errors(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, trust_remote_code=False)


def _packable(base: PreTrainedModel) -> int:
    import torch

    head = base.get_output_embeddings()
    linear = (each for each in base.modules() if isinstance(each, torch.nn.Linear) and each is not head)
    return sum(each.weight.numel() for each in linear)


def _adapter(config: TrainerConfig, base: PreTrainedModel) -> list[int]:
    """Parameters of each tensor that is trained."""
    import torch

    from finetune_trainer.modeling.lora import with_adapter

    with torch.device("meta"):
        adapted = with_adapter(config, base)
    return [each.numel() for each in adapted.parameters() if each.requires_grad]


def _intermediate(shape: PreTrainedConfig) -> int:
    """Width of the feed-forward layers; families without the usual name use four times the hidden size."""
    return int(shape.to_dict().get("intermediate_size") or 4 * shape.hidden_size)
