"""Builds measures from the results of both models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune_trainer.evaluation.exact_tests import (
    compute_mcnemar_p_value,
    compute_sign_flip_p_value,
    compute_swap_p_value,
)
from finetune_trainer.evaluation.intervals import (
    MIN_SAMPLES,
    bootstrap,
    estimate_mean,
    estimate_paired_change,
    estimate_proportion,
    estimate_proportion_change,
)
from finetune_trainer.records.evaluation import Estimate, Measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_trainer.evaluation.exact_tests import SwappedRows

    RowValues = NDArray[Any]


def measure_share(name: str, base: Sequence[bool], tuned: Sequence[bool]) -> Measure:
    """Return the fraction of rows that are correct for each model."""
    return Measure(
        name=name,
        higher_is_better=True,
        base=estimate_proportion(sum(base), len(base)),
        tuned=estimate_proportion(sum(tuned), len(tuned)),
        change=estimate_proportion_change(base, tuned),
        p_value=compute_mcnemar_p_value(base, tuned) if len(base) < MIN_SAMPLES else None,
    )


def measure_mean(name: str, base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """Return the mean of the scores of the rows, between 0 and 1, for each model. A higher score is better."""
    changes = [tuned_score - base_score for base_score, tuned_score in zip(base, tuned, strict=True)]
    return Measure(
        name=name,
        higher_is_better=True,
        base=_clip_interval(estimate_mean(base)),
        tuned=_clip_interval(estimate_mean(tuned)),
        change=estimate_paired_change(base, tuned),
        p_value=compute_sign_flip_p_value(changes) if len(changes) < MIN_SAMPLES else None,
    )


def measure_scores(name: str, base: Sequence[float], tuned: Sequence[float]) -> Measure:
    """Return the mean of scores between 0 and 1 for each model: of rows that are right or wrong, their fraction."""
    if all(score in (0, 1) for score in (*base, *tuned)):
        return measure_share(name, [score == 1 for score in base], [score == 1 for score in tuned])
    return measure_mean(name, base, tuned)


def _clip_interval(estimate: Estimate) -> Estimate:
    """Limit the interval of a mean to values between 0 and 1. Student's t interval exceeds them near the ends."""
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate.model_copy(update={"low": max(0.0, estimate.low), "high": min(1.0, estimate.high)})


def measure_statistic(
    name: str, compute_score: Callable[[RowValues], float], base: RowValues, tuned: RowValues
) -> Measure:
    """Return a score of all rows together for each model. A higher score is better.

    `base` and `tuned` have the shape (rows, values), and `compute_score` takes a selection of rows in this shape.
    """
    count = len(base)
    return Measure(
        name=name,
        higher_is_better=True,
        base=bootstrap(lambda rows: compute_score(base[rows]), count),
        tuned=bootstrap(lambda rows: compute_score(tuned[rows]), count),
        change=bootstrap(lambda rows: compute_score(tuned[rows]) - compute_score(base[rows]), count),
        p_value=_compute_statistic_p_value(compute_score, base, tuned) if count < MIN_SAMPLES else None,
    )


def _compute_statistic_p_value(compute_score: Callable[[RowValues], float], base: RowValues, tuned: RowValues) -> float:
    import numpy as np

    def compute_change(swapped: SwappedRows) -> float:
        mask = swapped[:, np.newaxis]
        return compute_score(np.where(mask, base, tuned)) - compute_score(np.where(mask, tuned, base))

    return compute_swap_p_value(compute_change, len(base))
