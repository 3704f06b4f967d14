"""The base model with the adapter worked into its weights, for servers that load no adapters. Imports torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling import loading as models
from finetune_trainer.modeling.generation_config import only_given_config
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.publishing.export import export_generation_config, export_tokenizer
from finetune_trainer.publishing.merge_check import Judge
from finetune_trainer.records.manifest import MergedLosses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_trainer.modeling.likelihood import Tokens
    from finetune_trainer.modeling.loading import Loaded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """A merged model on disk, and how it was judged."""

    folder: Path
    precision: str
    losses: dict[str, MergedLosses]


@dataclass(frozen=True)
class Merging:
    """What a merged model is made from, beside the loaded model itself."""

    config: TrainerConfig
    model_dir: Path
    """The base model's files."""
    texts: Mapping[str, Sequence[Tokens]]
    """To compare losses on."""
    alive: Callable[[], None]
    """Called as the work proceeds."""


def merge(merging: Merging, loaded: Loaded, target: Path) -> Merged:
    """Write the merged model into the folder `target`, load it again and compare it with base and adapter.

    The model in memory is used up, so that no two models are in memory at once. Raises `INTERNAL_ERROR` if the merged
    model is not the same as base and adapter.
    """
    precision = resolve_precision(merging.config)
    judge = Judge(merging.texts, precision, merging.alive)
    before = judge.before(loaded.model)
    _write(merge_weights(loaded.model, merging.alive), loaded.tokenizer, merging.model_dir, target)
    _release(loaded.model)
    merged = models.load_base(merging.config, target, loaded.backend)
    try:
        found = judge.after(before, merged)
    finally:
        _release(merged)
    for kind, each in found.items():
        log.info(
            "merged: loss on %s %.4f, base and adapter %.4f, base %.4f", kind, each.merged, each.adapter, each.base
        )
    return Merged(target, precision, found)


def merge_weights(model: PeftModel, alive: Callable[[], None]) -> PreTrainedModel:
    """The base model with the adapter added to its weights, in place. Each sum is computed in 32 bits and rounded once,
    where PEFT rounds the update before it adds it."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            formats = {name: weight.dtype for name, weight in base.named_parameters()}
            module.float()
            module.merge(safe_merge=True)
            for name, weight in base.named_parameters():
                weight.data = weight.data.to(formats[name])
            alive()
    merged: PreTrainedModel = model.unload()
    return merged


def _write(merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_dir: Path, target: Path) -> None:
    """With the generation config of the adapter: transformers loads settings of the base model that it refuses to save,
    and weights and all with them (https://github.com/huggingface/transformers/issues/29988)."""
    with only_given_config(merged):
        merged.save_pretrained(str(target))
    export_tokenizer(tokenizer, target)
    export_generation_config(merged, tokenizer, model_dir, target)


def _release(model: torch.nn.Module) -> None:
    """Free the memory of a model's weights, whoever still refers to the model."""
    model.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
