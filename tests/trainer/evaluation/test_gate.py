"""The gate: what passes, what does not, and in which words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetune_trainer.evaluation.gate import check_gate
from finetune_trainer.records.evaluation import Estimate, GateCheck, Measure


@dataclass(frozen=True)
class Limits:
    metric: str
    minimum: float | None = None
    maximum: float | None = None
    min_improvement: float | None = None


def number(value: float) -> Estimate:
    return Estimate(value=value, samples=50)


MEASURES = [
    Measure(name="evalLoss", higher_is_better=False, base=number(1.5), tuned=number(1.2), change=number(-0.3)),
    Measure(name="accuracy", higher_is_better=True, base=number(0.6), tuned=number(0.7)),
    Measure(name="chrf", higher_is_better=True, tuned=number(40)),
]

CASES = {
    "below the maximum": (Limits("evalLoss", maximum=1.3), "evalLoss at most 1.3", 1.2, True),
    "at the maximum": (Limits("evalLoss", maximum=1.2), "evalLoss at most 1.2", 1.2, True),
    "above the maximum": (Limits("evalLoss", maximum=1.1), "evalLoss at most 1.1", 1.2, False),
    "above the minimum": (Limits("accuracy", minimum=0.65), "accuracy at least 0.65", 0.7, True),
    "below the minimum": (Limits("accuracy", minimum=0.75), "accuracy at least 0.75", 0.7, False),
    "a loss that fell enough": (
        Limits("evalLoss", min_improvement=0.3),
        "evalLoss better than the base model's by at least 0.3",
        0.3,
        True,
    ),
    "a loss that fell too little": (
        Limits("evalLoss", min_improvement=0.4),
        "evalLoss better than the base model's by at least 0.4",
        0.3,
        False,
    ),
    "better by just as much, but for rounding": (
        Limits("accuracy", min_improvement=0.1),
        "accuracy better than the base model's by at least 0.1",
        pytest.approx(0.1),
        True,
    ),
    "not worse": (
        Limits("accuracy", min_improvement=0),
        "accuracy not worse than the base model's",
        pytest.approx(0.1),
        True,
    ),
    "not much worse": (
        Limits("accuracy", min_improvement=-0.05),
        "accuracy not worse than the base model's by more than 0.05",
        pytest.approx(0.1),
        True,
    ),
    "no base to be better than": (
        Limits("chrf", min_improvement=0),
        "chrf not worse than the base model's",
        None,
        False,
    ),
    "not measured, minimum": (Limits("bleu", minimum=0), "bleu at least 0", None, False),
    "not measured, maximum": (Limits("bleu", maximum=100), "bleu at most 100", None, False),
    "not measured, improvement": (
        Limits("bleu", min_improvement=-100),
        "bleu not worse than the base model's by more than 100",
        None,
        False,
    ),
}


@pytest.mark.parametrize(("rule", "words", "value", "passed"), CASES.values(), ids=CASES)
def test_a_limit(rule: Limits, words: str, value: float | None, passed: bool) -> None:
    [found] = check_gate([rule], MEASURES)
    assert found == GateCheck(metric=rule.metric, rule=words, value=found.value, passed=passed)
    assert found.value == value


def test_a_worse_model_does_not_pass() -> None:
    worse = [
        Measure(name="evalLoss", higher_is_better=False, base=number(1.0), tuned=number(1.1), change=number(0.1)),
        Measure(name="accuracy", higher_is_better=True, base=number(0.8), tuned=number(0.7), change=number(-0.1)),
    ]
    rules = [Limits(name, min_improvement=limit) for name in ("evalLoss", "accuracy") for limit in (0, -0.2)]
    assert [each.passed for each in check_gate(rules, worse)] == [False, True, False, True]
    assert check_gate(rules, worse)[0].value == pytest.approx(-0.1)


def test_each_limit_is_a_check_in_the_order_of_the_rules() -> None:
    rules = [Limits("accuracy", 0.1, 0.9, 0), Limits("evalLoss", maximum=2)]
    assert [each.metric for each in check_gate(rules, MEASURES)] == ["accuracy"] * 3 + ["evalLoss"]
    assert check_gate([], MEASURES) == []
