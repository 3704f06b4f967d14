"""Tests of the decision whether a change is better, worse or due to chance."""

from __future__ import annotations

import pytest

from finetune_trainer.evaluation.decisions import change_direction, comparison_direction, explain_few_rows
from finetune_trainer.records.evaluation import Comparison, Estimate, Measure


def make_measure(
    change: tuple[float, float | None, float | None, int] | None,
    p_value: float | None = None,
    higher_is_better: bool = True,
    name: str = "chrf",
) -> Measure:
    """Make a measure from the value, the interval and the rows of its change."""
    tuned = Estimate(value=1, samples=50)
    if change is None:
        return Measure(name=name, higher_is_better=higher_is_better, tuned=tuned)
    value, low, high, samples = change
    estimate = Estimate(value=value, low=low, high=high, samples=samples)
    return Measure(
        name=name, higher_is_better=higher_is_better, base=tuned, tuned=tuned, change=estimate, p_value=p_value
    )


DIRECTIONS = {
    "interval above zero": (make_measure((2, 1, 3, 50)), "better"),
    "interval below zero": (make_measure((-2, -3, -1, 50)), "worse"),
    "loss that fell": (make_measure((-2, -3, -1, 50), higher_is_better=False), "better"),
    "loss that rose": (make_measure((2, 1, 3, 50), higher_is_better=False), "worse"),
    "interval with zero": (make_measure((1, -1, 3, 50)), "unclear"),
    "interval that ends at zero": (make_measure((1, 0, 2, 50)), "unclear"),
    "low p-value": (make_measure((1, None, None, 18), 0.001), "better"),
    "low p-value of a fall": (make_measure((-1, None, None, 18), 0.05), "worse"),
    "high p-value": (make_measure((1, None, None, 18), 0.051), "unclear"),
    "five rows": (make_measure((1, None, None, 5), 0.0625), "few"),
    "neither interval nor p-value": (make_measure((1, None, None, 18)), "few"),
    "not measured on the base model": (make_measure(None), "unknown"),
}


@pytest.mark.parametrize(("measure", "expected"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_direction_of_change_is_decided(measure: Measure, expected: str) -> None:
    assert change_direction(measure) == expected


@pytest.mark.parametrize(("higher_is_better", "expected"), [(True, "worse"), (False, "better")])
def test_direction_of_comparison_depends_on_metric(higher_is_better: bool, expected: str) -> None:
    estimate, change = Estimate(value=2, samples=8), Estimate(value=-1, samples=8)
    comparison = Comparison(estimate=estimate, change=change, p_value=0.01)
    assert comparison_direction(comparison, higher_is_better=higher_is_better) == expected


FEW_CHANGE, UNCLEAR_CHANGE = (1.0, None, None, 4), (1.0, None, None, 18)
BOTH_ZERO = {"base": Estimate(value=0, samples=18), "tuned": Estimate(value=0, samples=18)}
MESSAGES = {
    "nothing measured": ([], None),
    "intervals": ([make_measure((1, -1, 3, 50))], None),
    "decided by a test": ([make_measure(UNCLEAR_CHANGE, 0.001)], None),
    "a method without intervals, a count": ([make_measure(None)], None),
    "four rows": (
        [make_measure(FEW_CHANGE, 0.125), make_measure((1, 0.5, 2, 50), name="accuracy")],
        "4 validation rows are too few to distinguish the change of chrf from chance",
    ),
    "no answer of either model is right": ([make_measure(UNCLEAR_CHANGE, 1.0).model_copy(update=BOTH_ZERO)], None),
    "no change": ([make_measure((0.0, None, None, 18), 1.0)], None),
    "undecided by a test": (
        [make_measure(UNCLEAR_CHANGE, 0.4), make_measure(UNCLEAR_CHANGE, 0.3, name="bleu")],
        "18 validation rows are too few to distinguish the change of chrf, bleu from chance",
    ),
}


@pytest.mark.parametrize(("measures", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_few_rows_undecided_changes_are_named(measures: list[Measure], expected: str | None) -> None:
    assert explain_few_rows(measures) == expected
