"""Checks that a merged model equals base model and adapter, by their losses on text. Import it after the backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.catastrophic_forgetting import tokenize_general_text
from finetune_trainer.evaluation.prompts import select_evenly
from finetune_trainer.modeling.batch_limits import MAX_LOSS_TOKENS
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
    """Limits of differences of losses, in nats per token."""

    max_difference: float
    """Largest difference between the losses of the merged model and of base model with adapter."""
    max_gain_share: float
    """Largest difference as a share of that between base model and adapter; the larger limit applies."""
    min_gain: float
    """If base model and adapter differ by more, the merged model must be nearer to the adapter."""


_TOLERANCE_16_BIT = MergeTolerance(max_difference=0.15, max_gain_share=0.25, min_gain=0.1)
_TOLERANCES = {
    "fp32": MergeTolerance(max_difference=1e-3, max_gain_share=0, min_gain=2e-3),
    "bf16": _TOLERANCE_16_BIT,
    "fp16": _TOLERANCE_16_BIT,
}
"""Tolerances by precision. Weights in 16 bits have 8 or 11 significant bits. Rounding loses a part of small updates:
with SmolLM2-135M in bf16 12 to 18 % of the gain of 6 steps, when updates are 0.07 % of the weights, 1 % after 20."""


@dataclass(frozen=True)
class MergeChecker:
    """Compares losses before and after a merge, on the same texts and in the precision of the training."""

    texts: Mapping[str, Sequence[LabeledTokens]]
    """Texts by kind."""
    precision: str
    heartbeat: Callable[[], None]
    """Called after each batch."""
    max_batch_tokens: int = MAX_LOSS_TOKENS

    def measure_before_merge(self, model: PeftModel) -> dict[str, tuple[float, float]]:
        """Return the losses of the base model and of base model with adapter, by kind of text."""
        base, tuned = measure_base_and_tuned(model, lambda: self._measure_losses(model))
        return {kind: (base[kind], tuned[kind]) for kind in self.texts}

    def check_after_merge(
        self, losses_before: Mapping[str, tuple[float, float]], merged: PreTrainedModel
    ) -> dict[str, MergedLosses]:
        """Return the losses of all three models. Raises `INTERNAL_ERROR` if merged model and adapter differ."""
        losses_by_kind = {
            kind: MergedLosses(base=losses_before[kind][0], adapter=losses_before[kind][1], merged=loss)
            for kind, loss in self._measure_losses(merged).items()
        }
        for kind, merged_losses in losses_by_kind.items():
            check_merged_losses(kind, merged_losses, _TOLERANCES[self.precision])
        return losses_by_kind

    def _measure_losses(self, model: PeftModel | PreTrainedModel) -> dict[str, float]:
        with autocast_like_training(model.device, self.precision):
            return {
                kind: compute_losses(model, rows, self.heartbeat, self.max_batch_tokens).mean
                for kind, rows in self.texts.items()
            }


def check_merged_losses(kind: str, merged_losses: MergedLosses, tolerance: MergeTolerance) -> None:
    """Raise `INTERNAL_ERROR` unless the loss of the merged model matches that of the adapter."""
    difference, gain = (
        abs(merged_losses.merged - merged_losses.adapter),
        abs(merged_losses.base - merged_losses.adapter),
    )
    is_nearer = difference < abs(merged_losses.merged - merged_losses.base) or gain <= tolerance.min_gain
    if is_nearer and difference <= max(tolerance.max_difference, tolerance.max_gain_share * gain):
        return
    raise TrainerError(
        Reason.INTERNAL_ERROR,
        f"the merged model differs from base model and adapter: its loss on {kind} is {merged_losses.merged:.4f} nats "
        f"per token, that of base model and adapter {merged_losses.adapter:.4f}, that of the base model "
        f"{merged_losses.base:.4f}",
    )


def select_check_texts(prepared: PreparedData, loaded: LoadedModel) -> dict[str, list[LabeledTokens]]:
    """Return general text and rows of the run: validation rows, or training rows if there are none."""
    rows = prepared.validation if prepared.validation is not None else prepared.dataset
    return {
        "general text": tokenize_general_text(loaded),
        "rows of the data": [_to_tokens(row) for row in select_evenly(rows, _ROW_COUNT)],
    }


def _to_tokens(row: Mapping[str, Any]) -> LabeledTokens:
    """Return the tokens of a row of any method, with the chosen answer of a preference."""
    if "input_ids" in row:
        return LabeledTokens(row["input_ids"], row["labels"])
    prompt, answer = row["prompt_ids"], row.get("chosen_ids") or row.get("completion_ids")
    if answer is None:  # of a method that generates answers
        return LabeledTokens(prompt, [IGNORE_INDEX, *prompt[1:]])
    return LabeledTokens([*prompt, *answer], [IGNORE_INDEX] * len(prompt) + list(answer))
