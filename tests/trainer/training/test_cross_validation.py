"""Tests of cross-validation: the folds, their results and cleanup, and that the refit equals a plain training."""

from __future__ import annotations

import gc
import logging
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT
from tests.support.trainer.tiny_training import RecordingReporter, RunTraining, TrainingOutcome

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

FOLDS = 3
SHAPE = {"maxSteps": None, "epochs": 1, "batchSize": 2, "crossValidation": {"folds": FOLDS}}
"""Of eight rows, folds train on five, five and six."""
PLAIN = {**SHAPE, "crossValidation": None}
CASES: dict[str, dict[str, Any]] = {
    "sft": {"lora": {"dropout": 0.2}},
    "bf16": {"precision": "bf16", "gradientCheckpointing": True},
    "packed": {"packing": True},
    "dpo": {"method": "dpo"},
    "kto": {"method": "kto"},
    "dora on nf4": {"lora": {"variant": "dora", "rank": 4}, "source": {"quantization": "nf4"}},
}


def has_same_weights(one: TrainingOutcome, other: TrainingOutcome) -> bool:
    return all((weight == other.weights[name]).all() for name, weight in one.weights.items())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cross_validation_folds_match_manual_trainings(run: RunTraining, case: dict[str, Any]) -> None:
    validated, plain, by_hand = run(**SHAPE, **case), run(**PLAIN, **case), run(**SHAPE, **case, without=1)
    assert validated.fold_losses[1] == by_hand.metrics["evalLoss"]
    assert len(set(validated.fold_losses)) == FOLDS
    assert validated.metrics["crossValidationLoss"] == pytest.approx(mean(validated.fold_losses))
    assert validated.metrics["crossValidationDeviation"] == pytest.approx(stdev(validated.fold_losses))
    assert has_same_weights(validated, plain)
    assert validated.losses[-len(plain.losses) :] == plain.losses
    for name in ("trainLoss", "finalLoss", "steps", "tokens", "supervisedTokens"):
        assert validated.metrics[name] == plain.metrics[name]
    assert {*validated.metrics} - {*plain.metrics} == {"crossValidationLoss", "crossValidationDeviation"}


def test_cross_validation_unsloth_matches_manual_trainings(run: RunTraining) -> None:
    shape = SHAPE | {"backend": "unsloth"}
    validated, plain = run(**shape), run(**PLAIN, backend="unsloth")
    assert validated.fold_losses[1] == run(**shape, without=1).metrics["evalLoss"]
    assert has_same_weights(validated, plain)


def test_cross_validation_each_fold_starts_from_adapter(run: RunTraining) -> None:
    adapter = str(run(maxSteps=3).folder / "adapter")
    validated, plain = run(**SHAPE, adapter=adapter), run(**PLAIN, adapter=adapter)
    assert validated.fold_losses[2] == run(**SHAPE, adapter=adapter, without=2).metrics["evalLoss"]
    assert has_same_weights(validated, plain)


def test_cross_validation_folds_stop_early(run: RunTraining) -> None:
    stopping = {"earlyStopping": {"patience": 1, "minDelta": 1000}, "evalSteps": 1, "validate": True}
    validated = run(maxSteps=6, crossValidation={"folds": 2}, **stopping)
    assert validated.metrics["steps"] == 2
    steps = list(dict.fromkeys(report.step for report in validated.progress if report.total_steps))
    assert steps == [0, 1, 2, 6, 7, 8, 12, 13, 14]


def test_cross_validation_fold_uses_best_adapter(run: RunTraining, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    wild = {"learningRate": 0.1, "warmupRatio": 0, "scheduler": "constant", "evalSteps": 1}
    settings = {**wild, "validate": True, "crossValidation": {"folds": 2}, "maxSteps": 3}
    gate = [{"metric": "crossValidationLoss", "maximum": 100}, {"metric": "crossValidationLoss", "maximum": 0.1}]
    validated = run(**settings, earlyStopping={"patience": 100}, evaluation={"gate": gate})
    step = int(
        next(match[1] for message in caplog.messages if (match := re.match(r"the adapter of step (\d+)", message)))
    )
    assert step < 3, "the data has to be learned badly at the end for this test"
    assert validated.fold_losses[0] == run(**settings | {"maxSteps": step}).fold_losses[0]
    assert validated.evaluation
    assert validated.evaluation.cross_validation
    assert validated.evaluation.cross_validation.folds == validated.fold_losses
    assert [check.passed for check in validated.evaluation.gate] == [True, False]
    assert validated.evaluation.gate[0].value == validated.metrics["crossValidationLoss"]


def test_cross_validation_progress_is_monotonic_and_log_names_fold(
    run: RunTraining, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    validated = run(**SHAPE)
    reports = [report for report in validated.progress if report.stage is Stage.TRAINING]
    steps = [report.step or 0 for report in reports]
    assert {report.total_steps for report in reports} == {steps[-1]} == {3 + 3 + 3 + 4}
    assert all(before <= after <= before + 1 for before, after in pairwise(steps))
    percentages = [report.percentage for report in reports]
    assert percentages == sorted(percentages)
    assert (percentages[-1], reports[-1].estimated_remaining_seconds) == (99, 0)
    assert "fold 2/3: training on 5 rows, 3 held out" in caplog.messages
    assert any(message.startswith("fold 2/3: step 1/3 loss") for message in caplog.messages)
    assert f"fold 2/3: loss {validated.fold_losses[1]:.4f} on the 3 held-out rows" in caplog.messages
    assert any(message.startswith("refit: step 4/4 loss") for message in caplog.messages)


def test_cross_validation_tracks_folds_separately(run: RunTraining) -> None:
    recorder = RecordingReporter()
    validated = run(progress=recorder, **SHAPE)
    losses = [
        (step, name, value)
        for step, metrics in recorder.tracked_metrics
        for name, value in metrics.items()
        if "loss" in name
    ]
    names = ["fold1/loss"] * 3 + ["fold2/loss"] * 3 + ["fold3/loss"] * 3 + ["loss"] * 4
    assert [(step, name) for step, name, _ in losses] == list(enumerate(names, start=1))
    assert [value for *_, value in losses[-4:]] == [pytest.approx(loss) for loss in validated.losses[-4:]]


class LivenessCounter(RecordingReporter):
    """Counts signs of life."""

    count = 0

    def heartbeat(self) -> None:
        super().heartbeat()
        self.count += 1


class OptimizerCounter(logging.Handler):
    """Counts those that are in memory when a training of the run is about to begin."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        import torch

        kinds = [type(instance) for instance in gc.get_objects()]  # not isinstance, which deprecated objects warn of
        if "training on" in record.msg:
            self.counts.append(sum(issubclass(kind, torch.optim.Optimizer) for kind in kinds))


def test_cross_validation_fold_is_freed_and_signals_life(run: RunTraining, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "finetune_trainer")
    signs, optimizers = LivenessCounter(), OptimizerCounter()
    logger = logging.getLogger("finetune_trainer.training.cross_validation")
    logger.addHandler(optimizers)
    gc.collect()
    gc.disable()  # so that they are not collected by chance
    try:
        run(**SHAPE, progress=signs)
    finally:
        gc.enable()
        logger.removeHandler(optimizers)
    assert optimizers.counts == [optimizers.counts[0]] * (FOLDS + 1)
    held_out_batches = FOLDS  # the rows of a fold fit into one batch
    preflight_signs = signs.count - held_out_batches
    assert preflight_signs > 0
    assert preflight_signs % (FOLDS + 1) == 0, "each training has the same checks, and each held-out batch is a sign"


def test_cross_validation_nan_loss_names_fold(run: RunTraining, model_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model_dir, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainerError, match=r"up to step 3 of 9 in fold 1/3; lower training\.learningRate") as caught:
        run(maxSteps=9, crossValidation={"folds": 3}, base=broken)
    assert caught.value.reason is Reason.NON_FINITE_LOSS
