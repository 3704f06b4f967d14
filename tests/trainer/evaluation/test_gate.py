"""Tests of the gate: which measures pass its rules, and how the rules are worded."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetune_trainer.evaluation.gate import check_gate
from finetune_trainer.records.evaluation import Estimate, GateCheck, Measure


@dataclass(frozen=True)
class GateRule:
    metric: str
    minimum: float | None = None
    maximum: float | None = None
    min_improvement: float | None = None


def make_estimate(value: float) -> Estimate:
    return Estimate(value=value, samples=50)


MEASURES = [
    Measure(
        name="evalLoss",
        higher_is_better=False,
        base=make_estimate(1.5),
        tuned=make_estimate(1.2),
        change=make_estimate(-0.3),
    ),
    Measure(name="accuracy", higher_is_better=True, base=make_estimate(0.6), tuned=make_estimate(0.7)),
    Measure(name="chrf", higher_is_better=True, tuned=make_estimate(40)),
]

CASES = {
    "below the maximum": (GateRule("evalLoss", maximum=1.3), "evalLoss at most 1.3", 1.2, True),
    "at the maximum": (GateRule("evalLoss", maximum=1.2), "evalLoss at most 1.2", 1.2, True),
    "above the maximum": (GateRule("evalLoss", maximum=1.1), "evalLoss at most 1.1", 1.2, False),
    "above the minimum": (GateRule("accuracy", minimum=0.65), "accuracy at least 0.65", 0.7, True),
    "below the minimum": (GateRule("accuracy", minimum=0.75), "accuracy at least 0.75", 0.7, False),
    "a loss that fell enough": (
        GateRule("evalLoss", min_improvement=0.3),
        "evalLoss better than the base model's by at least 0.3",
        0.3,
        True,
    ),
    "a loss that fell too little": (
        GateRule("evalLoss", min_improvement=0.4),
        "evalLoss better than the base model's by at least 0.4",
        0.3,
        False,
    ),
    "better by just as much, but for rounding": (
        GateRule("accuracy", min_improvement=0.1),
        "accuracy better than the base model's by at least 0.1",
        pytest.approx(0.1),
        True,
    ),
    "not worse": (
        GateRule("accuracy", min_improvement=0),
        "accuracy not worse than the base model's",
        pytest.approx(0.1),
        True,
    ),
    "not much worse": (
        GateRule("accuracy", min_improvement=-0.05),
        "accuracy not worse than the base model's by more than 0.05",
        pytest.approx(0.1),
        True,
    ),
    "no base to be better than": (
        GateRule("chrf", min_improvement=0),
        "chrf not worse than the base model's",
        None,
        False,
    ),
    "not measured, minimum": (GateRule("bleu", minimum=0), "bleu at least 0", None, False),
    "not measured, maximum": (GateRule("bleu", maximum=100), "bleu at most 100", None, False),
    "not measured, improvement": (
        GateRule("bleu", min_improvement=-100),
        "bleu not worse than the base model's by more than 100",
        None,
        False,
    ),
}


@pytest.mark.parametrize(("rule", "words", "value", "passed"), CASES.values(), ids=CASES)
def test_gate_single_limit_passes_or_fails(rule: GateRule, words: str, value: float | None, passed: bool) -> None:
    [check] = check_gate([rule], MEASURES)
    assert check == GateCheck(metric=rule.metric, rule=words, value=check.value, passed=passed, message=check.message)
    assert check.value == value


def test_gate_worse_model_fails_min_improvement() -> None:
    worse = [
        Measure(
            name="evalLoss",
            higher_is_better=False,
            base=make_estimate(1.0),
            tuned=make_estimate(1.1),
            change=make_estimate(0.1),
        ),
        Measure(
            name="accuracy",
            higher_is_better=True,
            base=make_estimate(0.8),
            tuned=make_estimate(0.7),
            change=make_estimate(-0.1),
        ),
    ]
    rules = [GateRule(name, min_improvement=limit) for name in ("evalLoss", "accuracy") for limit in (0, -0.2)]
    assert [check.passed for check in check_gate(rules, worse)] == [False, True, False, True]
    assert check_gate(rules, worse)[0].value == pytest.approx(-0.1)


def test_gate_several_limits_give_checks_in_rule_order() -> None:
    rules = [GateRule("accuracy", 0.1, 0.9, 0), GateRule("evalLoss", maximum=2)]
    assert [check.metric for check in check_gate(rules, MEASURES)] == ["accuracy"] * 3 + ["evalLoss"]
    assert check_gate([], MEASURES) == []


CLAUSES = {
    "minimum": (GateRule("chrf", minimum=99), "chrf is 40, at least 99 is required"),
    "maximum": (GateRule("evalLoss", maximum=0.001), "evalLoss is 1.2, at most 0.001 is required"),
    "improvement": (
        GateRule("evalLoss", min_improvement=0.4),
        "the improvement of evalLoss over the base model is 0.3, at least 0.4 is required",
    ),
    "not worse": (
        GateRule("accuracy", min_improvement=0),
        "the improvement of accuracy over the base model is 0.1, at least 0 is required",
    ),
    "not measured": (GateRule("bleu", minimum=20), "bleu was not measured, at least 20 is required"),
    "improvement not measured": (
        GateRule("chrf", min_improvement=1),
        "the improvement of chrf over the base model was not measured, at least 1 is required",
    ),
}


@pytest.mark.parametrize(("rule", "expected"), CLAUSES.values(), ids=CLAUSES)
def test_gate_message_states_value_and_limit(rule: GateRule, expected: str) -> None:
    [check] = check_gate([rule], MEASURES)
    assert check.message == expected
