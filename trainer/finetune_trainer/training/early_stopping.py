"""What was seen of the validation data so far, and what follows from it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from finetune_trainer.contract import EarlyStopping


@dataclass(frozen=True)
class EvalResult:
    """The validation data after so many optimizer steps: `evalLoss`, of `dpo` also `evalRewardAccuracy`."""

    step: int
    metrics: Mapping[str, float]

    @property
    def loss(self) -> float:
        """Mean loss per learnt token, or per row for `dpo` and `kto`."""
        return self.metrics["evalLoss"]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """As a checkpoint holds it, where a loss that is no number is absent."""
        loss = content["metrics"].get("evalLoss")
        return cls(content["step"], {**content["metrics"], "evalLoss": math.nan if loss is None else loss})

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"step": self.step, "metrics": {k: v for k, v in self.metrics.items() if math.isfinite(v)}}


def find_best(results: Sequence[EvalResult]) -> EvalResult | None:
    """The one of the lowest loss, the first of equals; not that before the first step."""
    candidates = [result for result in results if result.step and math.isfinite(result.loss)]
    return min(candidates, key=lambda look: look.loss, default=None)


def should_stop(results: Sequence[EvalResult], settings: EarlyStopping | None) -> bool:
    """Whether the last `patience` looks brought no loss that is lower by more than `minDelta`."""
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
