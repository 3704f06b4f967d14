"""Merges an adapter into the weights of the base model, for servers that cannot load adapters. Imports torch."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling import loading as models
from finetune_trainer.modeling.batch_limits import limit_loss_tokens
from finetune_trainer.modeling.generation import ignore_model_config
from finetune_trainer.modeling.positions import get_max_positions
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

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""Settings with which servers prepare images and audio for a multimodal model."""


@dataclass(frozen=True)
class MergedModel:
    """A merged model on disk, and its losses compared with base and adapter."""

    folder: Path
    precision: str
    losses: dict[str, MergedLosses]


@dataclass(frozen=True)
class MergeInputs:
    """Inputs of a merge in addition to the loaded model."""

    config: TrainerConfig
    model_dir: Path
    """Folder of the base model."""
    texts: Mapping[str, Sequence[LabeledTokens]]
    """Texts on which losses are compared, by kind of text."""
    heartbeat: Callable[[], None]
    """Called as the merge proceeds, which is no stall."""


def merge_adapter(merge_inputs: MergeInputs, loaded: LoadedModel, target: Path) -> MergedModel:
    """Write the merged model to the folder `target`, load it again and compare it with base model and adapter.

    The loaded model is used up, so that there is only one model in memory. Raises `INTERNAL_ERROR` if the merged model
    differs from base model and adapter.
    """
    precision = resolve_precision(merge_inputs.config)
    max_tokens = limit_loss_tokens(merge_inputs.config, get_max_positions(loaded.model.config))
    checker = MergeChecker(merge_inputs.texts, precision, merge_inputs.heartbeat, max_tokens)
    losses_before = checker.measure_before_merge(loaded.model)
    save_merged_model(
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
    """Add the adapter to the weights of the base model, in place, and return the base model.

    Each sum is computed in 32 bits and rounded once, whereas PEFT rounds the update before the addition. Trained
    embeddings replace those of the base model, also in an output head that shares them.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            dtypes = {name: weight.dtype for name, weight in base.named_parameters()}
            module.float()
            module.merge(safe_merge=True)
            for name, weight in base.named_parameters():
                weight.data = weight.data.to(dtypes[name])
            heartbeat()
        elif isinstance(module, TrainableTokensLayer):
            module.merge(safe_merge=True)
    merged: PreTrainedModel = model.unload()
    return merged


def save_merged_model(
    merged: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, model_dir: Path, target: Path
) -> None:
    """Save weights, tokenizer and the generation config that is also published with the adapter.

    transformers refuses to save some generation settings that it loads, and then does not save the weights either:
    https://github.com/huggingface/transformers/issues/29988
    """
    with ignore_model_config(merged):
        merged.save_pretrained(str(target))
    export_tokenizer(tokenizer, target)
    export_generation_config(merged, tokenizer, model_dir, target)
    for name in _PROCESSOR_FILES:
        if (model_dir / name).is_file():
            shutil.copyfile(model_dir / name, target / name)


def _free_weights(model: torch.nn.Module) -> None:
    """Free the memory of the weights of a model, even if the model is still referenced."""
    model.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
