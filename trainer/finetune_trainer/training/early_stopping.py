"""Results of evaluations during training, and the rule of early stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from finetune_trainer.contract import EarlyStopping


@dataclass(frozen=True)
class EvalResult:
    """The metrics on the validation data after a number of optimizer steps: `evalLoss`, and those of the method."""

    step: int
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per supervised token, or per row for preference methods."""
        return self.metrics["evalLoss"]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read a result from a checkpoint, where a non-finite loss is absent."""
        loss = content["metrics"].get("evalLoss")
        return cls(content["step"], {**content["metrics"], "evalLoss": math.nan if loss is None else loss})

    def to_json(self) -> dict[str, Any]:
        """Return the result for a checkpoint, without non-finite values."""
        return {"step": self.step, "metrics": {k: v for k, v in self.metrics.items() if math.isfinite(v)}}


def find_best(results: Sequence[EvalResult]) -> EvalResult | None:
    """Return the result with the lowest loss, the first of equal ones. The one before the first step does not count."""
    candidates = [result for result in results if result.step and math.isfinite(result.loss)]
    return min(candidates, key=lambda result: result.loss, default=None)


def find_published(results: Sequence[EvalResult], settings: EarlyStopping | None) -> EvalResult | None:
    """Return the result of the adapter that is published: the best one with early stopping, or else the last one."""
    best = find_best(results) if settings else None
    return best or (results[-1] if results else None)


def list_compared_steps(results: Sequence[EvalResult]) -> set[int]:
    """Return the steps whose results are compared row by row at the end: the first, the last and the best ones, with
    and without the evaluation before the first step."""
    finite = [result for result in results if math.isfinite(result.loss)]
    lowest = min(finite, key=lambda result: result.loss, default=None)
    compared = (*results[:1], *results[-1:], *finite[-1:], lowest, find_best(results))
    return {result.step for result in compared if result}


def should_stop(results: Sequence[EvalResult], settings: EarlyStopping | None) -> bool:
    """Return whether none of the last `patience` evaluations improved the loss by more than `minDelta`."""
    if settings is None:
        return False
    lowest_loss, evals_without_improvement = math.inf, 0
    for result in results:
        if result.step == 0:
            continue
        is_improved = result.loss < lowest_loss - settings.min_delta
        lowest_loss, evals_without_improvement = (
            (result.loss, 0) if is_improved else (lowest_loss, evals_without_improvement + 1)
        )
    return evals_without_improvement >= settings.patience
