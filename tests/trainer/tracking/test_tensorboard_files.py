"""TensorBoard's reader finds all points of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.tracking import tensorboard_files

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

CONTENT = {
    "model": {"uri": "s3://models/tiny"},
    "dataset": {"sources": [{"uri": "s3://data/rows/"}]},
    "training": {"maxSteps": 1},
    "output": {"uri": "s3://results/x"},
}
CURVES = {
    "loss": [(1, 2.0), (2, 1.5), (3, float("nan"))],
    "learningRate": [(1, 0.0), (2, 1e-3)],
    "evalLoss": [(0, 3.0), (2, 2.5)],
}
METRICS = {"accuracy": 0.5, "baseAccuracy": 0.25, "perplexity": float("inf")}


def write_event_files(folder: Path, **changes: object) -> None:
    tensorboard_files.write_event_file(TrainerConfig.model_validate(CONTENT | changes), CURVES, METRICS, folder)


def test_tensorboard_files_are_read_by_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a later attempt replaces the files of an earlier one
        write_event_files(tmp_path, tracking={"tool": "tensorboard"})
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["events.out.tfevents.finetune"]
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    scalars = {
        tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }
    assert scalars == {
        "loss": [(1, 2.0), (2, 1.5)],
        "learningRate": [(1, 0.0), (2, pytest.approx(1e-3))],
        "evalLoss": [(0, 3.0), (2, 2.5)],
        "result/accuracy": [(3, 0.5)],
        "result/baseAccuracy": [(3, 0.25)],
    }


def test_tensorboard_files_other_tool_writes_none(tmp_path: Path) -> None:
    write_event_files(tmp_path)
    write_event_files(tmp_path, tracking={"tool": "mlflow", "uri": "http://mlflow.example"})
    assert not list(tmp_path.iterdir())
