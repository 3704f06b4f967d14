"""Tests that an evaluation that the rows do not allow is refused before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, tokenizer
from tests.support.trainer.tiny_training import TrainingRequest

from finetune_trainer.contract import Reason, Result
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

WORDS = [{"prompt": f"Say {n} in German.", "completion": f"Zahl {n}"} for n in range(12)]
SENTENCES = [{"prompt": f"Say {n} in German.", "completion": f"Das ist die Zahl {n}."} for n in range(12)]
BLEU = {"task": "translation", "gate": [{"metric": "bleu", "minimum": 10}]}
FLAGS = {"metric": "biasFlags", "maximum": 0}

FITS: dict[str, tuple[list[dict[str, str]], dict[str, Any]]] = {
    "BLEU of sentences": (SENTENCES, BLEU),
    "chrF of words": (WORDS, {"task": "translation", "gate": [{"metric": "chrf", "minimum": 10}]}),
    "words without a rule for BLEU": (WORDS, {"task": "translation"}),
    "no flags": (WORDS, {"bias": {}, "gate": [FLAGS]}),
}


def check_requirements(rows: list[dict[str, str]], evaluation: dict[str, Any], folder: Path) -> None:
    from finetune_trainer.evaluation import requirements

    test_rows = [{"prompt": "Say 100 in German.", "completion": "Zahl hundert"}]
    request = TrainingRequest({}, rows=rows, test_rows=test_rows, validate=True, evaluation=evaluation)
    words = tokenizer(CHATML)
    requirements.check_requirements(request.config, request.prepare(words, folder), words)


@pytest.mark.parametrize(("rows", "evaluation"), FITS.values(), ids=FITS)
def test_requirements_measurable_evaluation_is_accepted(
    rows: list[dict[str, str]], evaluation: dict[str, Any], tmp_path: Path
) -> None:
    check_requirements(rows, evaluation, tmp_path)


TEST = {"sources": [{"uri": "s3://data/test.jsonl"}]}
TRAINING_METRICS = [
    *("trainLoss", "finalLoss", "trainSeconds", "steps", "tokens", "supervisedTokens", "tokensPerSecond"),
    *("peakMemoryBytes", "energyWattHours", "bestStep", "crossValidationDeviation"),
]
"""Metrics of a run that its evaluation does not measure."""


def test_requirements_metrics_of_the_largest_evaluation_fit_the_result() -> None:
    from finetune_trainer.evaluation import requirements

    graders = [{"name": f"grader{number}", "length": {"maximum": 9}} for number in range(8)]
    evaluation = {"task": "summarization", "bias": {}, "test": TEST, "graders": graders}
    names = requirements.list_metrics(TrainingRequest({"crossValidation": {"folds": 2}}, evaluation=evaluation).config)
    assert {"perplexity", "rougeL", "testLoss", "testRougeL", "biasFlags", "crossValidationLoss", "testGrader7"} < {
        *names
    }
    base_names = [f"base {name}" for name in names if name not in ("biasFlags", "crossValidationLoss")]
    metrics = dict.fromkeys([*names, *base_names, *TRAINING_METRICS], 1.0)
    Result(adapterURI="s3://adapters/a", digest="sha256:0", model_revision="main", metrics=metrics)


REFUSED: dict[str, tuple[list[dict[str, str]], dict[str, Any], str]] = {
    "BLEU of words": (
        WORDS,
        BLEU,
        "evaluation.gate names bleu, which cannot be measured: no reference answer has",
    ),
    "BLEU of words of the test": (
        WORDS,
        {"task": "translation", "test": TEST, "gate": [{"metric": "testBleu", "minimum": 10}]},
        "evaluation.gate names testBleu, which cannot be measured: no reference answer has",
    ),
    "test metrics without test data": (
        WORDS,
        {"gate": [{"metric": "testLoss", "maximum": 1}]},
        "evaluation.gate names testLoss, but this run measures only evalLoss",
    ),
    "flags without bias": (
        WORDS,
        {"gate": [FLAGS]},
        "evaluation.gate names biasFlags, but this run measures only evalLoss",
    ),
    "fewer flags than the base model": (
        WORDS,
        {"bias": {}, "gate": [FLAGS | {"minImprovement": 0}]},
        "evaluation.gate: biasFlags already compares both models, so minImprovement does not apply; set maximum",
    ),
}


@pytest.mark.parametrize(("rows", "evaluation", "expected_message"), REFUSED.values(), ids=REFUSED)
def test_requirements_unmeasurable_evaluation_is_refused(
    rows: list[dict[str, str]], evaluation: dict[str, Any], expected_message: str, tmp_path: Path
) -> None:
    with pytest.raises(TrainerError, match=expected_message) as error:
        check_requirements(rows, evaluation, tmp_path)
    assert error.value.reason is Reason.CONFIG_INVALID
