"""Verdicts and recommendations for evaluation results."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.trainer import run_records
from tests.support.trainer.run_records import make_estimate

from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.records.evaluation import (
    Comparison,
    ConfusionMatrix,
    CrossValidationResult,
    Estimate,
    EvaluationReport,
    GateCheck,
    LossPoint,
    Measure,
    OverfittingResult,
)
from finetune_trainer.reporting import verdicts
from finetune_trainer.reporting.advice import build_advice

FINE = OverfittingResult(verdict="none", message="fine")


def make_evaluation(*measures: Measure, **more: Any) -> EvaluationReport:
    return EvaluationReport(overfitting=more.pop("overfitting", FINE), measures=list(measures), **more)


UP = run_records.make_measure("accuracy", 0.5, 0.7, 0.1)
DOWN = run_records.make_measure("bleu", 30, 20, 1)
LOSS_DOWN = run_records.make_measure("evalLoss", 2, 1, 0.1, higher_is_better=False)
LOSS_UP = run_records.make_measure("evalLoss", 1, 2, 0.1, higher_is_better=False)
SAME = run_records.make_measure("chrf", 50, 50.1, 1)
ALONE = Measure(name="rouge1", higher_is_better=True, tuned=run_records.make_estimate(0.3, 0.1))
FOUR_ROWS = Estimate(value=0.1, samples=4)
FEW = Measure(name="rougeL", higher_is_better=True, tuned=FOUR_ROWS, change=FOUR_ROWS)
FLAGS = Measure(name="biasFlags", higher_is_better=False, tuned=run_records.make_estimate(0))


QUALITIES = {
    "better": ([UP, LOSS_DOWN], "good", "Better than the base model"),
    "better and unclear": ([UP, SAME], "good", "Better than the base model"),
    "worse": ([DOWN, SAME], "bad", "Worse than the base model"),
    "both": ([UP, DOWN], "unsure", "Better in some ways than the base model, worse in others"),
    "unclear": ([SAME, ALONE], "unsure", "No clear difference from the base model"),
    "too few rows": ([FEW, ALONE], "unsure", "Too few rows for a comparison with the base model"),
    "alone": ([ALONE], "unsure", "Measured, but not tested against the base model"),
    "nothing": ([], "unsure", "Not compared with the base model"),
    "lower loss alone": ([LOSS_DOWN], "good", "Better than the base model"),
    "lower loss, answers as before": (
        [LOSS_DOWN, SAME],
        "unsure",
        "Lower loss than the base model, but no clearly better answers",
    ),
    "lower loss, bias flags": ([LOSS_DOWN, FLAGS], "good", "Better than the base model"),
    "bias flags alone": ([FLAGS], "unsure", "Not compared with the base model"),
}


@pytest.mark.parametrize(("measures", "tone", "text"), QUALITIES.values(), ids=QUALITIES)
def test_headline_measures_give_tone_and_text(measures: list[Measure], tone: str, text: str) -> None:
    verdict = verdicts.quality_verdict(make_evaluation(*measures))
    assert (verdict.tone, verdict.text) == (tone, text)


def test_headline_failed_gate_comes_first() -> None:
    rules = [GateCheck(metric="bleu", rule="bleu at least 30", value=24.6, passed=passed) for passed in (True, False)]
    verdict = verdicts.quality_verdict(make_evaluation(UP, gate=rules))
    assert (verdict.tone, verdict.text) == ("bad", "Not published: better than the base model")
    assert verdicts.quality_verdict(make_evaluation(UP, gate=rules[:1])).text == "Better than the base model"


def test_headline_names_measures_of_too_few_rows() -> None:
    assert (
        verdicts.quality_verdict(make_evaluation(UP, FEW)).detail
        == "Better: Accuracy. Measured on fewer than 6 rows: ROUGE-L."
    )


def test_headline_folds_only_is_not_compared() -> None:
    assert verdicts.quality_verdict(make_evaluation(cross_validation=SPREAD)).text == "Not compared with the base model"


OVERFITTED = OverfittingResult(verdict="overfitting", message="it did", best_step=40)
FORGETFUL = judge_forgetting(run_records.make_measure("generalPerplexity", 10, 20, 1, higher_is_better=False))
REMEMBERING = judge_forgetting(run_records.make_measure("generalPerplexity", 57.19, 59.53, 1, higher_is_better=False))
FALLING = [LossPoint(step=step, loss=4.0 - step) for step in range(3)]
SPREAD = CrossValidationResult(metric="evalLoss", folds=[1, 2], mean=1.5, deviation=0.7)
FEWER = run_records.make_measure("accuracy", 0.5, 0.5, 0.1).model_copy(
    update={"tuned": run_records.make_estimate(0.5, 0.1, samples=20)}
)

ONE_LABEL = ConfusionMatrix(labels=["bad", "good"], counts=[[12, 0, 0], [8, 0, 0]], base_counts=[[0, 0, 12], [0, 0, 8]])
TWO_LABELS = ONE_LABEL.model_copy(update={"counts": [[12, 0, 0], [1, 7, 0]]})
CUT = ["complete answers: 8 of 12 answers of the tuned model were cut at 128 tokens"]
BASELINE_BETTER = UP.model_copy(
    update={"baselines": {"may": Comparison(estimate=make_estimate(0.9, 0.01), change=make_estimate(-0.2, 0.1))}}
)
BASELINE_HARDLY_BETTER = UP.model_copy(
    update={"baselines": {"may": Comparison(estimate=make_estimate(0.9, 0.01), change=make_estimate(-0.002, 0.001))}}
)

ADVICE = {
    "one label": (
        make_evaluation(confusion=ONE_LABEL),
        "60 % of them are right, no more than if all answers were the most frequent one (bad, 60 %)",
    ),
    "incomplete": (make_evaluation(missing=CUT), "Read what was not measured, or only in part: complete answers."),
    "worse than a baseline": (
        make_evaluation(BASELINE_BETTER),
        "Read the samples before you replace the baseline may: Accuracy got worse",
    ),
    "shorter": (make_evaluation(overfitting=OVERFITTED), "Train only to about step 40 of 900 (training.maxSteps: 40)"),
    "shorter without a step": (
        make_evaluation(overfitting=OverfittingResult(verdict="overfitting", message="it did")),
        "Train only for fewer epochs (training.epochs)",
    ),
    "longer": (make_evaluation(validation_losses=FALLING), "still falling at the end: train longer"),
    "forgetting": (make_evaluation(forgetting=FORGETFUL), "mix general rows into the data"),
    "nothing measured": (make_evaluation(), "Compare the answers of both models yourself"),
    "only folds": (make_evaluation(cross_validation=SPREAD), "only cross-validation was run"),
    "no test": (make_evaluation(ALONE), "Compare the answers of both models yourself: no change was tested."),
    "worse": (make_evaluation(DOWN), "Check the samples for what got worse (BLEU)"),
    "too few": (make_evaluation(FEWER), "Measure on more rows (dataset.validation): Accuracy had only 20"),
    "too few for an interval": (make_evaluation(FEW), "Measure on more rows (dataset.validation): ROUGE-L had only"),
    "learned little": (make_evaluation(SAME), "The training had little measurable effect"),
    "folds": (make_evaluation(cross_validation=SPREAD), "folds differ by 46.7 %"),
    "gate": (
        run_records.make_full_evaluation(),
        "Do not deploy this adapter: it fails 1 rule of the gate (bleu at least 30)",
    ),
    "bias": (run_records.make_full_evaluation(), "Check the rows that mention gender (female 210, male 930)"),
    "preflight warning": (
        run_records.make_full_evaluation(),
        "Read the warnings of the preflight checks (answers).",
    ),
    "personal data not redacted": (
        run_records.make_full_evaluation(),
        "from the training data (phone): set dataset.preparation.redact: [phone]",
    ),
}


@pytest.mark.parametrize(("evaluation", "expected"), ADVICE.values(), ids=ADVICE)
def test_advice_each_finding_gives_expected_text(evaluation: EvaluationReport, expected: str) -> None:
    assert expected in " ".join(build_advice(evaluation, run_records.make_manifest()))


NOT_ADVISED = {
    "labels that are distinguished": (make_evaluation(confusion=TWO_LABELS), "Do not rely on the labels"),
    "hardly worse than a baseline": (make_evaluation(BASELINE_HARDLY_BETTER), "Do not replace"),
    "learned little, though some got worse": (make_evaluation(SAME, DOWN), "little measurable effect"),
    "learned little, though it overfitted": (make_evaluation(SAME, overfitting=OVERFITTED), "little measurable effect"),
    "learned little, though some got better": (make_evaluation(SAME, UP), "little measurable effect"),
}


@pytest.mark.parametrize(("evaluation", "unwanted"), NOT_ADVISED.values(), ids=NOT_ADVISED)
def test_advice_is_not_given_if_contradicted(evaluation: EvaluationReport, unwanted: str) -> None:
    assert unwanted not in " ".join(build_advice(evaluation, run_records.make_manifest()))


DATA = {
    "no validation": (
        {"validation": 0, "kept": 10_963},
        "Hold out validation rows (dataset.validation.fraction: 0.05)",
    ),
    "overlength": ({"rejected": {"overlength": 1500}}, "1,500 rows (12.5 %) were rejected as overlength: raise model"),
    "truncated": ({"truncated": 2000}, "were truncated: raise model.maxLength"),
}


@pytest.mark.parametrize(("changes", "expected"), DATA.values(), ids=DATA)
def test_advice_data_report_gives_expected_text(changes: dict[str, Any], expected: str) -> None:
    report = run_records.DATASET_REPORT.model_copy(update=changes)
    assert expected in " ".join(build_advice(make_evaluation(UP), run_records.make_manifest(dataset=report)))


def test_advice_folds_do_not_ask_for_validation_rows() -> None:
    report = run_records.DATASET_REPORT.model_copy(update={"validation": 0, "kept": 10_963})
    advised = " ".join(
        build_advice(make_evaluation(cross_validation=SPREAD), run_records.make_manifest(dataset=report))
    )
    assert "Hold out validation rows" not in advised


def test_advice_nothing_unusual_says_so() -> None:
    report = run_records.DATASET_REPORT.model_copy(update={"sensitive": {}})
    (only,) = build_advice(make_evaluation(UP), run_records.make_manifest(dataset=report))
    assert only.startswith("No problems were found.")
