"""The recommendations are consistent with each other, with the verdicts and with the table of metrics."""

from __future__ import annotations

import re
from itertools import product

import pytest
from tests.support.trainer import run_records

from finetune_trainer.evaluation.forgetting import judge_forgetting
from finetune_trainer.evaluation.overfitting import judge_overfitting
from finetune_trainer.records.evaluation import EvaluationReport, GateCheck, LossPoint, Measure
from finetune_trainer.reporting.advice import build_advice

TRAIN_MORE = re.compile(r"train longer|more steps|more epochs|raise training\.(learningRate|lora\.rank)", re.IGNORECASE)
TRAIN_LESS = re.compile(r"train less|train only|fewer epochs|lower training\.(learningRate|lora)", re.IGNORECASE)

LOSSES = {
    "still falling": [4.0, 3.0, 2.0, 1.0],
    "flat": [4.0, 2.0, 2.0, 2.0],
    "risen": [4.0, 2.0, 2.5, 3.0],
    "two evaluations": [4.0, 3.0],
    "none": [],
}
TRAINING = {"falling": [4.0, 3.0, 2.0, 1.0], "rising": [1.0, 2.0, 3.0, 4.0]}
FORGETTING = {
    "not measured": None,
    "by 4 %": run_records.make_measure("generalPerplexity", 57.2, 59.5, 1, higher_is_better=False),
    "by 120 %": run_records.make_measure("generalPerplexity", 57, 127, 1, higher_is_better=False),
}
CHRF = {
    "better": (20, 30, 540),
    "worse": (30, 20, 540),
    "unclear": (30, 30, 540),
    "unclear on few rows": (30, 30, 30),
    "better on few rows": (20, 30, 30),
}
GATES = {
    "no gate": [],
    "gate passed": [GateCheck(metric="chrf", rule="chrf at least 10", value=20, passed=True)],
    "gate failed": [GateCheck(metric="chrf", rule="chrf at least 99", value=20, passed=False)],
}


def make_measure_on_rows(name: str, base: float, tuned: float, rows: int) -> Measure:
    measure = run_records.make_measure(name, base, tuned, 1)
    return measure.model_copy(update={"tuned": run_records.make_estimate(tuned, 1, samples=rows)})


def make_points(losses: list[float]) -> list[LossPoint]:
    return [LossPoint(step=10 * number, loss=loss) for number, loss in enumerate(losses, 1)]


def make_evaluation(losses: str, training: str, forgetting: str, chrf: str, gate: str) -> EvaluationReport:
    validation, measured = make_points(LOSSES[losses]), FORGETTING[forgetting]
    return EvaluationReport(
        overfitting=judge_overfitting(make_points(TRAINING[training]), validation, None, None),
        forgetting=measured and judge_forgetting(measured),
        measures=[make_measure_on_rows("chrf", *CHRF[chrf])],
        validation_losses=validation,
        gate=GATES[gate],
    )


@pytest.mark.parametrize("case", [*product(LOSSES, TRAINING, FORGETTING, CHRF, GATES)], ids=", ".join)
def test_advice_all_verdict_combinations_are_consistent(case: tuple[str, str, str, str, str]) -> None:
    evaluation = make_evaluation(*case)
    advice_texts = build_advice(evaluation, run_records.make_manifest())
    forgetting = evaluation.forgetting
    page = " ".join([*advice_texts, evaluation.overfitting.message, forgetting.message if forgetting else ""])
    assert not (TRAIN_MORE.search(page) and TRAIN_LESS.search(page)), page
    assert len(advice_texts) == len(set(advice_texts))
    assert ("few rows" in case[3] and "unclear" in case[3]) == ("Measure on more rows" in page)
    assert (case[4] == "gate failed") == page.startswith("Do not deploy")
    assert (case[2] == "by 120 %") == ("forgot" in page)


def test_advice_single_unclear_measure_is_named_alone() -> None:
    measures = [
        make_measure_on_rows("evalLoss", 9, 1, 30).model_copy(update={"higher_is_better": False}),
        make_measure_on_rows("chrf", 20, 40, 30),
        make_measure_on_rows("exactMatch", 0.1, 0.1, 30),
        make_measure_on_rows("bleu", 30, 30, 540),
    ]
    evaluation = EvaluationReport(
        overfitting=judge_overfitting([], make_points([3, 2, 2]), None, None), measures=measures
    )
    (advice,) = (message for message in build_advice(evaluation, run_records.make_manifest()) if "more rows" in message)
    assert advice.startswith("Measure on more rows (dataset.validation): Exact match had only 30, too few")


def test_advice_unclear_measures_give_range_of_rows() -> None:
    measures = [make_measure_on_rows("chrf", 30, 30, 30), make_measure_on_rows("bleu", 30, 30, 45)]
    evaluation = EvaluationReport(
        overfitting=judge_overfitting([], make_points([3, 2, 2]), None, None), measures=measures
    )
    assert "chrF, BLEU had only 30 to 45, too few" in " ".join(build_advice(evaluation, run_records.make_manifest()))


def test_advice_loss_still_falling_says_train_longer() -> None:
    evaluation = make_evaluation("still falling", "falling", "by 4 %", "better", "no gate")
    assert "train longer" in " ".join(build_advice(evaluation, run_records.make_manifest()))
