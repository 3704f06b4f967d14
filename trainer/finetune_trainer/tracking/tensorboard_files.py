"""The event file for TensorBoard, which is published with the result and covers all attempts of the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

TENSORBOARD_FOLDER = "tensorboard"
_EVENT_FILE_NAME = "events.out.tfevents.finetune"
"""Name of the event file. It is the same for each attempt, so that a later one replaces the file of an earlier one.
TensorBoard looks for `tfevents`; its default name contains time and host name."""


Curves = Mapping[str, Iterable[tuple[int, float]]]
"""Metrics by name, each as pairs of optimizer step and value."""


def write_event_file(config: TrainerConfig, curves: Curves, result_metrics: Mapping[str, float], folder: Path) -> None:
    """Write an event file to `tensorboard/` in `folder`, if `tracking.tool` is `tensorboard`.

    The metrics of the result are written at the last step that has a training loss.
    """
    if config.tracking is None or config.tracking.tool != "tensorboard":
        return
    from tensorboardX import SummaryWriter

    target = folder / TENSORBOARD_FOLDER
    with SummaryWriter(str(target)) as writer:
        for name, points in curves.items():
            for step, value in points:
                _add_scalar(writer, name, value, step)
        last_step = max((step for step, _ in curves["loss"]), default=0)
        for name, value in result_metrics.items():
            _add_scalar(writer, f"result/{name}", value, last_step)
    (event_file,) = (path for path in target.iterdir() if path.name != _EVENT_FILE_NAME)
    event_file.replace(target / _EVENT_FILE_NAME)


def _add_scalar(writer: SummaryWriter, name: str, value: float, step: int) -> None:
    if math.isfinite(value):
        writer.add_scalar(name, value, step)
