"""What is reported to the operator: verdicts, and changes from baselines."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer.run_records import make_estimate, make_measure

from finetune_trainer.contract import Verdicts
from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.evaluation.result_summary import build_comparisons, build_verdicts
from finetune_trainer.records.evaluation import (
    BaselineRecord,
    BiasFinding,
    BiasResult,
    Comparison,
    Estimate,
    EvaluationReport,
    Measure,
    OverfittingResult,
)


def make_report(**fields: Any) -> EvaluationReport:
    return EvaluationReport(**{"overfitting": OverfittingResult(verdict="none", message=""), **fields})


def make_bias(*flags: bool) -> BiasResult:
    number = make_estimate(0.5, 0.1)
    finding = BiasFinding(
        kind="pair", category="age", base=number, tuned=number, change=number, flagged=False, message=""
    )
    return BiasResult(findings=[finding.model_copy(update={"flagged": flag}) for flag in flags])


@pytest.mark.parametrize(
    ("bias", "verdict"),
    [
        (None, "unknown"),
        (make_bias(), "unknown"),
        (make_bias(False, False), "none"),
        (make_bias(False, True), "bias"),
    ],
    ids=["not measured", "too little to compare", "no flags", "one flag"],
)
def test_build_verdicts_bias_follows_from_flags(bias: BiasResult | None, verdict: str) -> None:
    assert build_verdicts(make_report(bias=bias)).bias == verdict


def test_build_verdicts_are_those_of_the_report() -> None:
    forgetting = judge_forgetting(make_measure("generalPerplexity", 57, 127, 1, higher_is_better=False))
    overfitting = OverfittingResult(verdict="overfitting", message="")
    report = make_report(overfitting=overfitting, forgetting=forgetting)
    assert build_verdicts(report) == Verdicts(overfitting="overfitting", forgetting="forgetting", bias="unknown")
    assert build_verdicts(make_report()) == Verdicts(overfitting="none", forgetting="unknown", bias="unknown")


def compare(name: str, baseline: float, change: Estimate | None, p_value: float | None = None) -> Measure:
    comparison = Comparison(estimate=make_estimate(baseline), change=change, p_value=p_value)
    measure = make_measure(name, 3, 1.23456789012, 0.1, higher_is_better=name == "accuracy")
    return measure.model_copy(update={"baselines": {"may": comparison}})


def test_build_comparisons_lists_the_loss_first_and_measured_changes_only() -> None:
    measures = [
        compare("perplexity", 4, make_estimate(-1, 0.5)),
        compare("accuracy", 0.5, make_estimate(0.25), p_value=0.125),
        make_measure("biasFlags", 0, 0, 0),
        compare("macroF1", 0.5, None),
        compare("evalLoss", 2.0000000001, make_estimate(-1 / 3, 0.25, samples=300)),
    ]
    records = {"may": BaselineRecord(digest="sha256:" + "a" * 64, held_out=True), "june": BaselineRecord()}
    may, june = build_comparisons(make_report(measures=measures, baselines=records)) or []
    assert (may.name, may.digest, may.held_out) == ("may", "sha256:" + "a" * 64, True)
    assert [change.metric for change in may.changes] == ["evalLoss", "accuracy", "perplexity"]
    assert may.changes[0].to_json() == {
        "metric": "evalLoss",
        "higherIsBetter": False,
        "baseline": 2.0,
        "value": 1.234568,
        "change": -0.3333333,
        "low": -0.5833333,
        "high": -0.08333333,
        "samples": 300,
    }
    assert (may.changes[1].higher_is_better, may.changes[1].low, may.changes[1].p_value) == (True, None, 0.125)
    assert (june.name, june.digest, june.held_out, june.changes) == ("june", None, False, []), "it was not measured"


def test_build_comparisons_without_baselines_is_none() -> None:
    assert build_comparisons(make_report()) is None
