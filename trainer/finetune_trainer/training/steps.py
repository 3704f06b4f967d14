"""Counts the optimizer steps of a run. Imports no torch, so that `finetune-trainer plan` can use it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason, TrainerConfig, Training
from finetune_trainer.errors import TrainerError
from finetune_trainer.training import packing
from finetune_trainer.training.batching import measure_lengths

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData


def resolve_accumulation(training: Training, world_size: int) -> int:
    """Return the forward passes of each rank per optimizer step.

    Raises `CONFIG_INVALID` if `globalBatchSize` cannot be split evenly among the ranks.
    """
    if training.global_batch_size is None:
        return training.gradient_accumulation
    rows_per_pass = training.batch_size * world_size
    if training.global_batch_size % rows_per_pass:
        message = (
            f"training.globalBatchSize is {training.global_batch_size}, which is no multiple of {rows_per_pass}: "
            f"training.batchSize {training.batch_size} x {world_size} ranks"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return training.global_batch_size // rows_per_pass


def advise_accumulation(training: Training) -> str:
    """Return what follows the advice to lower `batchSize`, as a part of a sentence: `globalBatchSize` keeps the rows of
    a step by itself."""
    return "" if training.global_batch_size else " (and raise training.gradientAccumulation accordingly)"


def count_optimizer_steps(training: Training, row_count: int, world_size: int = 1) -> int:
    """Return the optimizer steps of a training on `row_count` rows. The last step of an epoch may have fewer rows."""
    if training.max_steps is not None:
        return training.max_steps
    if training.is_policy_method:
        steps_per_epoch = row_count // count_prompts_per_step(training, world_size)
        return math.ceil((training.epochs or 0) * max(steps_per_epoch, 1))
    batches = math.ceil(row_count / (training.batch_size * world_size))
    return math.ceil((training.epochs or 0) * max(math.ceil(batches / resolve_accumulation(training, world_size)), 1))


def count_prompts_per_step(training: Training, world_size: int) -> int:
    """Return the prompts of a step, whose answers are compared. Prompts that do not fill a step are left out of an
    epoch.

    Raises `CONFIG_INVALID` if the answers of a step are no multiple of `rollout.generations`.
    """
    answers, generations = (
        training.batch_size * training.gradient_accumulation * world_size,
        training.effective_rollout.generations,
    )
    if answers % generations:
        message = (
            f"a step has {answers} answers (training.batchSize {training.batch_size} x gradientAccumulation "
            f"{training.gradient_accumulation} x {world_size} ranks), which is no multiple of "
            f"training.rollout.generations {generations}; set gradientAccumulation or generations accordingly"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return answers // generations


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
    is_packed = config.training.effective_batching == "packed"
    return len(packing.pack(measure_lengths(rows).tolist(), config.model.max_length)) if is_packed else len(rows)
