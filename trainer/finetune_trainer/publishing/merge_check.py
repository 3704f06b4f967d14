"""Whether a merged model is its adapter: by the loss of both on text. Imports torch, so import it after the backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.catastrophic_forgetting import tokenize_general_text
from finetune_trainer.evaluation.prompts import select_evenly
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses, measure_base_and_tuned
from finetune_trainer.modeling.precision import autocast_like_training
from finetune_trainer.records.manifest import MergedLosses

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import LoadedModel

_ROW_COUNT = 16


@dataclass(frozen=True)
class MergeTolerance:
    """In nats per token."""

    max_difference: float
    """Largest difference of the losses of the merged model and of base and adapter."""
    max_gain_share: float
    """The same as a share of the difference of base and adapter; the larger of both counts."""
    min_gain: float
    """From this difference of base and adapter on, the merged model has to be nearer to the adapter."""


_TOLERANCE_16_BIT = MergeTolerance(max_difference=0.15, max_gain_share=0.25, min_gain=0.1)
_TOLERANCES = {
    "fp32": MergeTolerance(max_difference=1e-3, max_gain_share=0, min_gain=2e-3),
    "bf16": _TOLERANCE_16_BIT,
    "fp16": _TOLERANCE_16_BIT,
}
"""By precision. Weights in 16 bits have 8 or 11 significant ones, so rounding the sum loses a part of small updates:
with SmolLM2-135M in bf16 12 to 18 % of what 6 steps gained, when updates are 0.07 % of the weights, 1 % after 20."""


@dataclass(frozen=True)
class MergeChecker:
    """Texts to measure losses on, and the precision to measure in."""

    texts: Mapping[str, Sequence[LabeledTokens]]
    """By their kind."""
    precision: str
    heartbeat: Callable[[], None]
    """Called after each batch."""

    def measure_before_merge(self, model: PeftModel) -> dict[str, tuple[float, float]]:
        """The losses of the base model and of base and adapter, by kind of text."""
        base, tuned = measure_base_and_tuned(model, lambda: self._measure_losses(model))
        return {kind: (base[kind], tuned[kind]) for kind in self.texts}

    def check_after_merge(
        self, losses_before: Mapping[str, tuple[float, float]], merged: PreTrainedModel
    ) -> dict[str, MergedLosses]:
        """The losses of all three. Raises `INTERNAL_ERROR` if the merged model is not its adapter."""
        losses_by_kind = {
            kind: MergedLosses(base=losses_before[kind][0], adapter=losses_before[kind][1], merged=loss)
            for kind, loss in self._measure_losses(merged).items()
        }
        for kind, merged_losses in losses_by_kind.items():
            check_merged_losses(kind, merged_losses, _TOLERANCES[self.precision])
        return losses_by_kind

    def _measure_losses(self, model: PeftModel | PreTrainedModel) -> dict[str, float]:
        with autocast_like_training(model.device, self.precision):
            return {kind: compute_losses(model, rows, self.heartbeat).mean for kind, rows in self.texts.items()}


def check_merged_losses(kind: str, merged_losses: MergedLosses, tolerance: MergeTolerance) -> None:
    """Raise `INTERNAL_ERROR` unless the merged model's loss is the adapter's, and not the base model's."""
    difference, gain = (
        abs(merged_losses.merged - merged_losses.adapter),
        abs(merged_losses.base - merged_losses.adapter),
    )
    is_nearer = difference < abs(merged_losses.merged - merged_losses.base) or gain <= tolerance.min_gain
    if is_nearer and difference <= max(tolerance.max_difference, tolerance.max_gain_share * gain):
        return
    raise TrainerError(
        Reason.INTERNAL_ERROR,
        f"the merged model is not the same as base model and adapter: its loss on {kind} is "
        f"{merged_losses.merged:.4f} nats "
        f"per token, that of base model and adapter {merged_losses.adapter:.4f}, that of the base model "
        f"{merged_losses.base:.4f}",
    )


def select_check_texts(prepared: PreparedData, loaded: LoadedModel) -> dict[str, list[LabeledTokens]]:
    """General text, and rows of the run: validation rows, or training rows where there are none."""
    rows = prepared.validation if prepared.validation is not None else prepared.dataset
    return {
        "general text": tokenize_general_text(loaded),
        "rows of the data": [_to_tokens(row) for row in select_evenly(rows, _ROW_COUNT)],
    }


def _to_tokens(row: Mapping[str, Any]) -> LabeledTokens:
    """A row of any method; of a preference the better answer."""
    if "input_ids" in row:
        return LabeledTokens(row["input_ids"], row["labels"])
    prompt, answer = row["prompt_ids"], row.get("chosen_ids") or row["completion_ids"]
    return LabeledTokens([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + list(answer))
