"""The losses of the validation rows: equal to TRL's, the same in all results, and kept in checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config
from tests.support.trainer.tiny_training import RecordingReporter, RunTraining, make_prepared_data

from finetune_trainer.modeling.loading import LoadedModel, load_model, load_tokenizer
from finetune_trainer.records.evaluation import EvaluationReport, Measure
from finetune_trainer.training.early_stopping import EvalResult, list_compared_steps
from finetune_trainer.training.row_losses import RowLossHistory

if TYPE_CHECKING:
    from finetune_trainer.training.state import TrainerInputs

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

OVERSHOOTING = {"learningRate": 0.1, "warmupRatio": 0, "scheduler": "constant", "evalSteps": 1, "maxSteps": 3}
"""Settings with which the last evaluation is not the best one."""


def get_measure(report: EvaluationReport | None, name: str) -> Measure:
    assert report
    return next(measure for measure in report.measures if measure.name == name)


def test_eval_loss_of_many_rows_is_the_same_everywhere(run: RunTraining) -> None:
    rows = [{"prompt": f"What is {n} + {n % 7}?", "completion": f"{n + n % 7}"} for n in range(1100)]
    reporter = RecordingReporter()
    gate = [{"metric": "evalLoss", "maximum": 100}]
    settings = {"maxSteps": 2, "batchSize": 8, "gradientAccumulation": 1, "gradientCheckpointing": False}
    trained = run(rows=rows, validate=True, progress=reporter, evaluation={"gate": gate}, **settings)
    measure = get_measure(trained.evaluation, "evalLoss")
    assert trained.evaluation
    assert measure.tuned.samples == len(rows)
    tracked = [metrics["evalLoss"] for _, metrics in reporter.tracked_metrics if "evalLoss" in metrics]
    assert {
        measure.tuned.value,
        trained.evaluation.gate[0].value,
        trained.evaluation.flatten_metrics()["evalLoss"],
        trained.metrics["evalLoss"],
        trained.evaluation.validation_losses[-1].loss,
        tracked[-1],
        trained.progress[-1].eval_loss,
    } == {measure.tuned.value}
    assert measure.base
    assert measure.base.value == trained.metrics["baseEvalLoss"] == trained.evaluation.validation_losses[0].loss
    perplexity = get_measure(trained.evaluation, "perplexity")
    assert perplexity.tuned.value == math.exp(measure.tuned.value)


@pytest.mark.parametrize("stopping", [None, {"patience": 100}], ids=["last", "best"])
def test_eval_loss_is_that_of_the_published_adapter(run: RunTraining, stopping: dict[str, int] | None) -> None:
    trained = run(validate=True, **OVERSHOOTING, earlyStopping=stopping, evaluation={})
    assert trained.evaluation
    measure, points = get_measure(trained.evaluation, "evalLoss"), trained.evaluation.validation_losses
    step = trained.metrics["bestStep"] if stopping else 3
    assert trained.metrics["bestStep"] < 3, "the data has to be learned badly at the end for this test"
    assert [measure.tuned.value] == [point.loss for point in points if point.step == step]
    assert measure.tuned.value == trained.metrics["evalLoss"]


def test_eval_loss_of_continued_adapter_is_compared_with_base_model(run: RunTraining) -> None:
    first = run(validate=True, evaluation={}, learningRate=0.01)
    second = run(validate=True, evaluation={}, adapter=str(first.folder / "adapter"))
    base = get_measure(second.evaluation, "evalLoss").base
    first_base = get_measure(first.evaluation, "evalLoss").base
    assert base
    assert first_base
    assert base.value == pytest.approx(first_base.value, abs=1e-6)
    assert second.metrics["baseEvalLoss"] < base.value, "the training starts from the adapter"


def test_overfitting_change_is_that_of_the_loss_curve(run: RunTraining) -> None:
    trained = run(validate=True, **OVERSHOOTING, evaluation={})
    assert trained.evaluation
    points, result = trained.evaluation.validation_losses, trained.evaluation.overfitting
    assert result.change
    assert result.change.value == pytest.approx(points[-1].loss - min(point.loss for point in points), abs=1e-9)
    assert result.change.samples == 8
    assert result.p_value is not None


@pytest.fixture
def inputs(model_dir: Path, tmp_path: Path) -> TrainerInputs:
    from finetune_trainer.training.state import TrainerInputs

    settings = config({"batchSize": 3, "maxSteps": 1})
    loaded = LoadedModel(load_model(settings, model_dir, "transformers"), load_tokenizer(model_dir), "transformers")
    return TrainerInputs(settings, loaded, make_prepared_data("sft", validate=True), tmp_path)


def test_row_losses_match_trl_and_keep_random_state(inputs: TrainerInputs) -> None:
    import torch

    from finetune_trainer.training.evaluation_callback import HeldOutEvaluator
    from finetune_trainer.training.trl_trainer import build_trainer

    trainer, rows = build_trainer(inputs), inputs.prepared.dataset
    state = torch.get_rng_state()
    result = HeldOutEvaluator(trainer, inputs, rows, lambda: None).evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.training
    assert result.row_losses
    trainer.model.eval()
    for index, row in enumerate(rows):
        batch = trainer.data_collator([row])
        with torch.no_grad():
            loss = float(trainer.compute_loss(trainer.model, batch))
        assert result.row_losses.sums[index] / result.row_losses.token_counts[index] == pytest.approx(loss, rel=1e-5)


def test_row_losses_survive_checkpoint(tmp_path: Path) -> None:
    import torch

    from finetune_trainer.training.tokenized_trainer import TokenCounter

    saved, restored = (TokenCounter(torch.device("cpu")) for _ in range(2))
    saved.eval_results = [EvalResult(0, {"evalLoss": 0.1})]
    saved.row_losses.record(0, [0.1, 1 / 3, math.pi], [1, 2, 3])
    saved.save(tmp_path)
    restored.restore(tmp_path)
    assert restored.row_losses == saved.row_losses


COMPARED_STEPS: dict[str, tuple[list[float], set[int]]] = {
    "none": ([], set()),
    "first, best and last": ([4.0, 3.0, 2.0, 2.5, 2.6], {0, 20, 40}),
    "best before the first step": ([1.0, 3.0, 2.0, 2.5], {0, 20, 30}),
    "not finite at the end": ([4.0, 3.0, 2.0, 2.5, math.nan], {0, 20, 30, 40}),
}


@pytest.mark.parametrize(("losses", "expected"), COMPARED_STEPS.values(), ids=COMPARED_STEPS)
def test_row_losses_are_kept_for_compared_steps(losses: list[float], expected: set[int]) -> None:
    results = [EvalResult(10 * index, {"evalLoss": loss}) for index, loss in enumerate(losses)]
    history = RowLossHistory()
    for result in results:
        history.record(result.step, [result.loss], [1])
    history.keep(list_compared_steps(results))
    assert history.sums_by_step.keys() == expected


def test_row_losses_change_needs_both_steps() -> None:
    history = RowLossHistory()
    history.record(0, [1.0, 2.0], [1, 1])
    history.record(10, [1.5, 1.0], [1, 1])
    assert history.subtract(10, 0) == [0.5, -1.0]
    assert history.subtract(20, 0) is None


def test_checkpoint_has_row_losses_of_resumed_training(run: RunTraining) -> None:
    settings: dict[str, Any] = {"validate": True, "evalSteps": 1, "maxSteps": 4, "evaluation": {}}
    whole = run(**settings)
    stopped = run(**settings, save_at=2)
    checkpoint = stopped.folder / "trainer" / "checkpoint-2"
    assert set(json.loads((checkpoint / "counts.json").read_text())["rowLosses"]["sums"]) >= {"0", "2"}
    resumed = run(**settings, resume=str(checkpoint))
    assert resumed.evaluation
    assert whole.evaluation
    assert resumed.evaluation.measures == whole.evaluation.measures
    assert resumed.evaluation.overfitting == whole.evaluation.overfitting
