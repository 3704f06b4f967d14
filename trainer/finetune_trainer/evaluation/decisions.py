"""Decides whether a change is better, worse or due to chance. Reports and verdicts use these decisions alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from finetune_trainer.evaluation.exact_tests import MIN_TEST_SAMPLES, SIGNIFICANCE
from finetune_trainer.records.evaluation import Comparison, Estimate, Measure

ChangeDirection = Literal["better", "worse", "unclear", "few", "unknown"]


def change_direction(measure: Measure) -> ChangeDirection:
    """Return the direction of the change from the base model to the fine-tuned model."""
    return decide_direction(measure.change, measure.p_value, higher_is_better=measure.higher_is_better)


def comparison_direction(comparison: Comparison, *, higher_is_better: bool) -> ChangeDirection:
    """Return the direction of the change from a baseline to the fine-tuned model."""
    return decide_direction(comparison.change, comparison.p_value, higher_is_better=higher_is_better)


def decide_direction(change: Estimate | None, p_value: float | None, *, higher_is_better: bool) -> ChangeDirection:
    """Return the direction of a change.

    - `better` or `worse`: the confidence interval does not contain zero. For few rows, which have no interval, the
      p-value of an exact test is at most 0.05.
    - `unclear`: the change may be due to chance.
    - `few`: there are too few rows for any decision.
    - `unknown`: there is no change, because the metric was not measured on the other model.
    """
    if change is None:
        return "unknown"
    if not _is_decidable(change, p_value):
        return "few"
    if not is_significant(change, p_value):
        return "unclear"
    return "better" if (change.value > 0) == higher_is_better else "worse"


def is_significant(change: Estimate, p_value: float | None) -> bool:
    """Return whether a change is more than chance, by its interval or else by the p-value of an exact test."""
    if change.low is None or change.high is None:
        return p_value is not None and p_value <= SIGNIFICANCE
    return not change.low <= 0 <= change.high


def is_underpowered(measure: Measure) -> bool:
    """Return whether more rows might decide about the change. Nothing says so if no answer of either model is right, or
    if an exact test found no change at all."""
    is_zero = measure.base is not None and measure.base.value == measure.tuned.value == 0
    is_equal = measure.change is not None and measure.change.value == 0 and measure.p_value == 1
    direction = change_direction(measure)
    return direction == "few" or (direction == "unclear" and not is_zero and not is_equal)


def explain_few_rows(measures: Sequence[Measure]) -> str | None:
    """Return a message if changes cannot be distinguished from chance on so few validation rows, otherwise None."""
    # The losses of dpo and kto are not paired by row, so they never have an interval.
    undecided = [
        (measure.name, measure.change.samples)
        for measure in measures
        if measure.change and measure.change.low is None and is_underpowered(measure)
    ]
    if not undecided:
        return None
    names, row_counts = [name for name, _ in undecided], [count for _, count in undecided]
    return f"{min(row_counts)} validation rows are too few to distinguish the change of {', '.join(names)} from chance"


def _is_decidable(change: Estimate, p_value: float | None) -> bool:
    has_interval = change.low is not None and change.high is not None
    return has_interval or (p_value is not None and change.samples >= MIN_TEST_SAMPLES)
