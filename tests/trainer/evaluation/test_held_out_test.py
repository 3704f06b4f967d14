"""Measures of the published adapter on the rows of `evaluation.test`, which are used for nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, tokenizer
from tests.support.trainer.tiny_training import RunTraining, TrainingRequest

from finetune_trainer.records.evaluation import EvaluationReport, Measure

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

WORDS = ["lamp", "river", "stone", "bread", "winter", "bridge", "letter", "garden", "window", "market"]


def make_reviews(words: list[str]) -> list[dict[str, str]]:
    return [
        {"prompt": f"The {word} is {'fine' if good else 'poor'}.", "completion": "good" if good else "bad"}
        for word in words
        for good in (True, False)
    ]


REVIEWS, TEST = make_reviews(WORDS), make_reviews(["paper", "clock", "tower"])
SOURCES = {"sources": [{"uri": "s3://data/test.jsonl"}]}
SHAPE: dict[str, Any] = {"batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False, "maxSteps": 40}
OVERSHOOTING = {"learningRate": 0.3, "warmupRatio": 0, "scheduler": "constant", "evalSteps": 1, "maxSteps": 5}


def get_measures(report: EvaluationReport | None) -> dict[str, Measure]:
    assert report
    return {measure.name: measure for measure in report.test_measures or []}


def compute_plain_loss(model: PreTrainedModel, rows: Dataset) -> float:
    """Return the loss per supervised token, by the loss function of transformers."""
    import torch

    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss
        supervised = int((labels[:, 1:] != -100).sum())
        total, count = total + float(loss) * supervised, count + supervised
    return total / count


def test_test_loss_is_that_of_plain_transformers_with_the_published_adapter(
    run: RunTraining, model_dir: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stopping = {"earlyStopping": {"patience": 100}}
    settings = {"rows": REVIEWS, "test_rows": TEST, "validate": True, "evaluation": {"test": SOURCES}}
    trained = run(**settings, **{**SHAPE, **OVERSHOOTING, **stopping})
    assert trained.metrics["bestStep"] < trained.metrics["steps"], "an intermediate adapter has to be published here"
    (tmp_path / "oracle").mkdir()
    rows = TrainingRequest({}, rows=REVIEWS, test_rows=TEST).prepare(tokenizer(), tmp_path / "oracle").test
    assert rows is not None
    base = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    measure = get_measures(trained.evaluation)["testLoss"]
    assert measure.base
    assert (measure.tuned.samples, measure.higher_is_better) == (len(TEST), False)
    assert measure.base.value == pytest.approx(compute_plain_loss(base, rows), rel=1e-4)
    tuned = PeftModel.from_pretrained(base, trained.folder / "adapter").eval()
    assert measure.tuned.value == pytest.approx(compute_plain_loss(tuned, rows), rel=1e-4)
    assert measure.change
    assert measure.change.value == pytest.approx(measure.tuned.value - measure.base.value, abs=1e-9)
    assert measure.p_value is not None


def test_test_answers_are_measured_without_validation_rows_gated_and_compared(run: RunTraining) -> None:
    gate = [
        {"metric": "testAccuracy", "minImprovement": 0.1},
        {"metric": "testLoss", "minImprovement": 0.1},
        {"metric": "testLoss", "maximum": 1e-9},
    ]
    evaluation = {"task": "classification", "maxNewTokens": 4, "maxSamples": 4, "test": SOURCES, "gate": gate}
    settings: dict[str, Any] = {"rows": REVIEWS, "test_rows": TEST, "evaluation": evaluation, **SHAPE}
    first = run(**settings)
    assert first.evaluation
    measures = get_measures(first.evaluation)
    samples = {name: measure.tuned.samples for name, measure in measures.items()}
    assert samples == {"testLoss": 6, "testAccuracy": 4, "testMacroF1": 4}
    assert measures["testAccuracy"].tuned.value >= 0.5
    assert [check.passed for check in first.evaluation.gate] == [True, True, False]
    assert (first.evaluation.measures, first.evaluation.rows, first.evaluation.missing) == ([], [], [])
    assert first.evaluation.flatten_metrics().keys() == {
        *("testLoss", "testAccuracy", "testMacroF1"),
        *("baseTestLoss", "baseTestAccuracy", "baseTestMacroF1"),
    }
    second = run(**settings | {"maxSteps": 2}, baselines={"old": str(first.folder / "adapter")})
    for name, measure in get_measures(second.evaluation).items():
        comparison = measure.baselines["old"]
        assert comparison.estimate.value == pytest.approx(measures[name].tuned.value, rel=1e-4)
        assert comparison.change
        assert comparison.change.value == pytest.approx(measure.tuned.value - comparison.estimate.value, abs=1e-6)


def test_test_rows_change_no_other_result(run: RunTraining) -> None:
    settings: dict[str, Any] = {"rows": REVIEWS, "validate": True, **SHAPE, "maxSteps": 1}
    with_test = run(**settings, test_rows=TEST, evaluation={"test": SOURCES})
    without = run(**settings, evaluation={})
    assert with_test.evaluation
    assert without.evaluation
    assert with_test.weights.keys() == without.weights.keys()
    assert all((weight == without.weights[name]).all() for name, weight in with_test.weights.items())
    results, expected = with_test.evaluation.to_json(), without.evaluation.to_json()
    assert results.pop("testMeasures")
    assert results.pop("preflight")  # it counts the answers of all rows
    assert expected.pop("preflight")
    assert results == expected


def test_test_answers_that_fail_leave_the_loss(run: RunTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.evaluation import answer_scoring

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(answer_scoring.task_metrics, "measure_task", broken)
    evaluation = {
        "task": "classification",
        "maxNewTokens": 4,
        "test": SOURCES,
        "gate": [{"metric": "testAccuracy", "minimum": 0}],
    }
    report = run(rows=REVIEWS, test_rows=TEST, evaluation=evaluation, **SHAPE | {"maxSteps": 1}).evaluation
    assert report
    assert report.missing == ["answers to the test rows: RuntimeError: no such kernel"]
    assert get_measures(report).keys() == {"testLoss"}
    assert [(check.passed, check.value) for check in report.gate] == [(False, None)]
