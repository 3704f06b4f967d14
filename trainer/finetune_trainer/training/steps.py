"""Counts the optimizer steps of a run. Imports no torch, so that `finetune-trainer plan` can use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.training import packing

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData


def count_optimizer_steps(training: Training, row_count: int, world_size: int = 1) -> int:
    """Return the optimizer steps of a training on `row_count` rows. The last step of an epoch may have fewer rows."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(row_count / (training.batch_size * world_size))
    return math.ceil((training.epochs or 0) * max(math.ceil(batches / training.gradient_accumulation), 1))


def count_steps_per_training(config: TrainerConfig, prepared: PreparedData, world_size: int) -> list[int]:
    """Return the optimizer steps of each training of the run. The training on all rows is the last one."""
    return [
        count_optimizer_steps(config.training, count_sequences(config, rows), world_size)
        for rows in iterate_training_rows(prepared)
    ]


def iterate_training_rows(prepared: PreparedData) -> Iterator[datasets.Dataset]:
    """Yield the rows of each training of the run: one for each fold, then all rows."""
    folds = prepared.folds
    yield from (prepared.exclude_fold(fold).dataset for fold in range(folds.fold_count if folds else 0))
    yield prepared.dataset


def count_sequences(config: TrainerConfig, rows: datasets.Dataset) -> int:
    """Return the number of sequences that batches are made of: packed sequences, or rows if packing is off."""
    return len(packing.pack_dataset(rows, config.model.max_length)) if config.training.packing else len(rows)
