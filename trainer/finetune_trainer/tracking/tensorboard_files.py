"""TensorBoard's event file, beside the result: the whole run's, earlier attempts' steps too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from finetune_trainer.training.state import TrainResult

TENSORBOARD_FOLDER = "tensorboard"
_EVENT_FILE_NAME = "events.out.tfevents.finetune"
"""The same for each attempt, so that a later one replaces what an earlier one left; TensorBoard looks for `tfevents`.
Its own name would hold the time and this machine's."""


def write_event_file(
    config: TrainerConfig, train_result: TrainResult, metrics: Mapping[str, float], folder: Path
) -> None:
    """Below `tensorboard/` in `folder`, if it is asked for; `metrics` are those of the result, after the last step."""
    if config.tracking is None or config.tracking.tool != "tensorboard":
        return
    from tensorboardX import SummaryWriter

    target = folder / TENSORBOARD_FOLDER
    with SummaryWriter(str(target)) as writer:
        for name, values in (("loss", train_result.losses), ("learningRate", train_result.learning_rates)):
            for step, value in values:
                _add_scalar(writer, name, value, step)
        for eval_result in train_result.eval_results:
            for name, value in eval_result.metrics.items():
                _add_scalar(writer, name, value, eval_result.step)
        last_step = max((step for step, _ in train_result.losses), default=0)
        for name, value in metrics.items():
            _add_scalar(writer, f"result/{name}", value, last_step)
    (event_file,) = (path for path in target.iterdir() if path.name != _EVENT_FILE_NAME)
    event_file.replace(target / _EVENT_FILE_NAME)


def _add_scalar(writer: SummaryWriter, name: str, value: float, step: int) -> None:
    if math.isfinite(value):
        writer.add_scalar(name, value, step)
