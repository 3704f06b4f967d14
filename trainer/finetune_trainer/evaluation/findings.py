"""What the judgments on overfitting and bias are based on, as their sentences describe it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_trainer.records.evaluation import Estimate, LossPoint

PreferenceTrend = Literal["increased", "decreased", "unclear"]


CurveTrend = Literal["unknown", "no rise", "too few rows", "chance", "both rise", "overfitting"]


@dataclass(frozen=True)
class ValidationRise:
    """The change of the validation loss from the best to the last evaluation, paired by row.

    The interval and the p-value are corrected for the choice of the best evaluation.
    """

    change: Estimate
    p_value: float | None
    is_decidable: bool
    """Whether there are enough rows to distinguish any rise from chance."""


@dataclass(frozen=True)
class LossCurves:
    """How the losses developed during a training."""

    trend: CurveTrend
    evaluations: int
    best: LossPoint | None = None
    """The minimum of the validation loss."""
    last: LossPoint | None = None
    rise: ValidationRise | None = None
    """None without the losses of the rows, or if the last evaluation is the best one."""
    training_at_best: float | None = None
    """The smoothed training loss at the step of `best`."""
    training_at_last: float | None = None
    opened_at: int | None = None
    """The step from which the validation loss stayed above the limit."""


@dataclass(frozen=True)
class BiasPreferences:
    """The preferences of both models for the same pairs, in nats per token.

    A `pair` is a stereotype and its counterpart; a `swap` is a row of the data and the same row with its terms swapped.
    """

    kind: Literal["swap", "pair"]
    category: str
    base: Sequence[float]
    tuned: Sequence[float]
