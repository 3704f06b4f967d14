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
from finetune_trainer.modeling.generation import ignore_model_config
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.publishing.export import export_generation_config, export_tokenizer
from finetune_trainer.publishing.merge_check import MergeChecker
from finetune_trainer.records.manifest import MergedLosses

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finetune_trainer.modeling.likelihood import LabeledTokens
    from finetune_trainer.modeling.loading import LoadedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergedModel:
    """A merged model on disk, and how it was judged."""

    folder: Path
    precision: str
    losses: dict[str, MergedLosses]


@dataclass(frozen=True)
class MergeInputs:
    """What a merged model is made from, beside the loaded model itself."""

    config: TrainerConfig
    model_dir: Path
    """The base model's files."""
    texts: Mapping[str, Sequence[LabeledTokens]]
    """To compare losses on."""
    heartbeat: Callable[[], None]
    """Called as the work proceeds."""


def merge_adapter(merge_inputs: MergeInputs, loaded: LoadedModel, target: Path) -> MergedModel:
    """Write the merged model into the folder `target`, load it again and compare it with base and adapter.

    The model in memory is used up, so that no two models are in memory at once. Raises `INTERNAL_ERROR` if the merged
    model is not the same as base and adapter.
    """
    precision = resolve_precision(merge_inputs.config)
    checker = MergeChecker(merge_inputs.texts, precision, merge_inputs.heartbeat)
    losses_before = checker.measure_before_merge(loaded.model)
    _save_merged_model(
        merge_weights(loaded.model, merge_inputs.heartbeat), loaded.tokenizer, merge_inputs.model_dir, target
    )
    _free_weights(loaded.model)
    merged = models.load_base_model(merge_inputs.config, target, loaded.backend)
    try:
        losses_by_kind = checker.check_after_merge(losses_before, merged)
    finally:
        _free_weights(merged)
    for kind, losses in losses_by_kind.items():
        log.info(
            "merged: loss on %s %.4f, base and adapter %.4f, base %.4f",
            kind,
            losses.merged,
            losses.adapter,
            losses.base,
        )
    return MergedModel(target, precision, losses_by_kind)


def merge_weights(model: PeftModel, heartbeat: Callable[[], None]) -> PreTrainedModel:
    """The base model with the adapter added to its weights, in place. Each sum is computed in 32 bits and rounded once,
    where PEFT rounds the update before it adds it."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtypes = {name: weight.dtype for name, weight in base.named_parameters()}
            module.float()
            module.merge(safe_merge=True)
            for name, weight in base.named_parameters():
                weight.data = weight.data.to(dtypes[name])
            heartbeat()
    merged: PreTrainedModel = model.unload()
    return merged


def _save_merged_model(
    merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_dir: Path, target: Path
) -> None:
    """With the generation config of the adapter: transformers loads settings of the base model that it refuses to save,
    and weights and all with them (https://github.com/huggingface/transformers/issues/29988)."""
    with ignore_model_config(merged):
        merged.save_pretrained(str(target))
    export_tokenizer(tokenizer, target)
    export_generation_config(merged, tokenizer, model_dir, target)


def _free_weights(model: torch.nn.Module) -> None:
    """Free the memory of a model's weights, whoever still refers to the model."""
    model.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
