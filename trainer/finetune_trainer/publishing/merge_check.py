"""Whether a merged model is its adapter: by the loss of both on text. Imports torch, so import it after the backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Reason
from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.catastrophic_forgetting import general_rows
from finetune_trainer.modeling.inference import spread
from finetune_trainer.modeling.likelihood import Tokens, base_and_tuned, losses
from finetune_trainer.modeling.precision import as_in_training
from finetune_trainer.records.manifest import MergedLosses

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.modeling.loading import Loaded

_ROWS = 16


@dataclass(frozen=True)
class Tolerance:
    """In nats per token."""

    off: float
    """Largest difference of the losses of the merged model and of base and adapter."""
    share: float
    """The same as a share of the difference of base and adapter; the larger of both counts."""
    tuned: float
    """From this difference of base and adapter on, the merged model has to be nearer to the adapter."""


_IN_16_BITS = Tolerance(off=0.15, share=0.25, tuned=0.1)
_TOLERANCES = {"fp32": Tolerance(off=1e-3, share=0, tuned=2e-3), "bf16": _IN_16_BITS, "fp16": _IN_16_BITS}
"""By precision. Weights in 16 bits have 8 or 11 significant ones, so rounding the sum loses a part of small updates:
with SmolLM2-135M in bf16 12 to 18 % of what 6 steps gained, when updates are 0.07 % of the weights, 1 % after 20."""


@dataclass(frozen=True)
class Judge:
    """Texts to measure losses on, and the precision to measure in."""

    texts: Mapping[str, Sequence[Tokens]]
    """By their kind."""
    precision: str
    alive: Callable[[], None]
    """Called after each batch."""

    def before(self, model: PeftModel) -> dict[str, tuple[float, float]]:
        """The losses of the base model and of base and adapter, by kind of text."""
        base, tuned = base_and_tuned(model, lambda: self._losses(model))
        return {kind: (base[kind], tuned[kind]) for kind in self.texts}

    def after(self, before: Mapping[str, tuple[float, float]], merged: PreTrainedModel) -> dict[str, MergedLosses]:
        """The losses of all three. Raises `INTERNAL_ERROR` if the merged model is not its adapter."""
        found = {
            kind: MergedLosses(base=before[kind][0], adapter=before[kind][1], merged=loss)
            for kind, loss in self._losses(merged).items()
        }
        for kind, measured in found.items():
            check(kind, measured, _TOLERANCES[self.precision])
        return found

    def _losses(self, model: PeftModel | PreTrainedModel) -> dict[str, float]:
        with as_in_training(model.device, self.precision):
            return {kind: losses(model, rows, self.alive).mean for kind, rows in self.texts.items()}


def check(kind: str, found: MergedLosses, tolerance: Tolerance) -> None:
    """Raise `INTERNAL_ERROR` unless the merged model's loss is the adapter's, and not the base model's."""
    off, gain = abs(found.merged - found.adapter), abs(found.base - found.adapter)
    nearer = off < abs(found.merged - found.base) or gain <= tolerance.tuned
    if nearer and off <= max(tolerance.off, tolerance.share * gain):
        return
    raise TrainerError(
        Reason.INTERNAL_ERROR,
        f"the merged model is not the same as base model and adapter: its loss on {kind} is {found.merged:.4f} nats "
        f"per token, that of base model and adapter {found.adapter:.4f}, that of the base model {found.base:.4f}",
    )


def texts(prepared: PreparedData, loaded: Loaded) -> dict[str, list[Tokens]]:
    """General text, and rows of the run: validation rows, or training rows where there are none."""
    rows = prepared.validation if prepared.validation is not None else prepared.dataset
    return {
        "general text": general_rows(loaded),
        "rows of the data": [_tokens(row) for row in spread(rows, _ROWS)],
    }


def _tokens(row: Mapping[str, Any]) -> Tokens:
    """A row of any method; of a preference the better answer."""
    if "input_ids" in row:
        return Tokens(row["input_ids"], row["labels"])
    prompt, answer = row["prompt_ids"], row.get("chosen_ids") or row["completion_ids"]
    return Tokens([*prompt, *answer], [IGNORED] * len(prompt) + list(answer))
