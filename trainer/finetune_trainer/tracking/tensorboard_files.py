"""TensorBoard's event file, beside the result: the whole run's, earlier attempts' steps too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

    from finetune_trainer.training.train import Trained

FOLDER = "tensorboard"
_NAME = "events.out.tfevents.finetune"
"""The same for each attempt, so that a later one replaces what an earlier one left; TensorBoard looks for `tfevents`.
Its own name would hold the time and this machine's."""


def write(config: TrainerConfig, trained: Trained, metrics: Mapping[str, float], folder: Path) -> None:
    """Below `tensorboard/` in `folder`, if it is asked for; `metrics` are those of the result, after the last step."""
    if config.tracking is None or config.tracking.tool != "tensorboard":
        return
    from tensorboardX import SummaryWriter

    target = folder / FOLDER
    with SummaryWriter(str(target)) as writer:
        for name, values in (("loss", trained.losses), ("learningRate", trained.learning_rates)):
            for step, value in values:
                _add(writer, name, value, step)
        for look in trained.looks:
            for name, value in look.metrics.items():
                _add(writer, name, value, look.step)
        last = max((step for step, _ in trained.losses), default=0)
        for name, value in metrics.items():
            _add(writer, f"result/{name}", value, last)
    (written,) = (path for path in target.iterdir() if path.name != _NAME)
    written.replace(target / _NAME)


def _add(writer: SummaryWriter, name: str, value: float, step: int) -> None:
    if math.isfinite(value):
        writer.add_scalar(name, value, step)
