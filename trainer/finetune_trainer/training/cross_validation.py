"""Cross-validation: before the training on all rows the same once more for each fold, without its part, and the loss on
that part. The base model is loaded once. Imports torch, so import this module only after the backend.

Each checkpoint holds the losses of the folds that were done before it, and so says which training it is of.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune_trainer.checkpoints.store import COUNTS_NAME, FOLD_LOSSES_KEY
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.evaluation.losses import summarize_folds
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.training import packing
from finetune_trainer.training.adapter_snapshot import AdapterSnapshot
from finetune_trainer.training.monitor import MetricLogger, StepOffset
from finetune_trainer.training.train import TrainingSession, TrainResult, count_optimizer_steps
from finetune_trainer.training.train import train as train_once

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

log = logging.getLogger(__name__)


def train_all(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, session: TrainingSession, work_dir: Path
) -> TrainResult:
    """All trainings of the run; what is trained in the end, and the metrics, are those of the one on all rows.

    With folds, `fold_losses` and the metrics `crossValidationLoss`, their mean, and `crossValidationDeviation`, their
    sample standard deviation, are there too. Raises what `train.train` does.
    """
    folds = prepared.folds
    if folds is None:
        return train_once(config, loaded, prepared, session, work_dir)
    initial_adapter = AdapterSnapshot(loaded.model)
    initial_adapter.capture()
    steps, losses = (
        count_steps_per_training(config, prepared, topology.world_size()),
        _read_fold_losses(session.resume_from),
    )
    while (fold_index := len(losses)) < folds.fold_count:
        offset = StepOffset(
            f"fold {fold_index + 1}/{folds.fold_count}", sum(steps[:fold_index]), sum(steps), tuple(losses)
        )
        fold = prepared.exclude_fold(fold_index)
        log_fold_metrics = partial(_log_fold_metrics, session.log_metrics, fold_index + 1)
        fold_session = replace(session, offset=offset, log_metrics=log_fold_metrics)
        losses.append(_train_fold(config, loaded, fold, fold_session, work_dir))
        session = replace(session, resume_from=None)  # it was of that fold
        _free_memory()
        initial_adapter.restore()
    offset = StepOffset("refit", sum(steps[:-1]), sum(steps), tuple(losses))
    fold_metrics = _cross_validation_metrics(losses)
    trained = train_once(config, loaded, prepared, replace(session, offset=offset), work_dir)
    energy_update = {"message": f"{trained.energy.message}; of the training on all rows, without the folds"}
    energy = trained.energy.model_copy(update=energy_update if trained.energy.watt_hours is not None else {})
    return replace(trained, metrics={**trained.metrics, **fold_metrics}, fold_losses=losses, energy=energy)


def _cross_validation_metrics(losses: list[float]) -> dict[str, float]:
    summary = summarize_folds(losses)
    if summary is None:
        return {}
    log.info(
        "cross-validation: loss %.4f ± %.4f over %d folds; refit on all rows next",
        summary.mean,
        summary.deviation,
        len(losses),
    )
    return {"crossValidationLoss": summary.mean, "crossValidationDeviation": summary.deviation}


def _train_fold(
    config: TrainerConfig, loaded: LoadedModel, fold: PreparedData, session: TrainingSession, work_dir: Path
) -> float:
    """The loss on the rows that are left out."""
    name, held_out_count = session.offset.name, len(fold.held_out_fold or ())
    log.info("%s: trains on %d rows, without %d", name, len(fold.dataset), held_out_count)
    if config.training.early_stopping is None:
        fold = replace(fold, validation=None)  # looking at it would change nothing
    # A folder of its own: the last checkpoint of the fold before may still be on its way to the store.
    result = train_once(config, loaded, fold, session, work_dir / name.replace("/", "-of-").replace(" ", "-"))
    loss = result.metrics["leftOutLoss"]
    log.info("%s: loss %.4f on the %d rows left out", name, loss, held_out_count)
    return loss


def _log_fold_metrics(log_metrics: MetricLogger, fold_number: int, step: int, metrics: Mapping[str, float]) -> None:
    """Apart from those of the training on all rows, under the same tracker."""
    log_metrics(step, {f"fold{fold_number}/{name}": value for name, value in metrics.items()})


def _read_fold_losses(checkpoint: Path | None) -> list[float]:
    """Of the folds that were done when the checkpoint was made."""
    if checkpoint is None:
        return []
    content = json.loads((checkpoint / COUNTS_NAME).read_text(encoding="utf-8"))
    return list(content[FOLD_LOSSES_KEY])


def _free_memory() -> None:
    """Trainer and optimizer, which refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_steps_per_training(config: TrainerConfig, prepared: PreparedData, world_size: int) -> list[int]:
    """Optimizer steps of each training of the run, that on all rows last."""
    return [
        count_optimizer_steps(config.training, count_sequences(config, rows), world_size)
        for rows in iterate_training_rows(prepared)
    ]


def iterate_training_rows(prepared: PreparedData) -> Iterator[datasets.Dataset]:
    """What each training of the run is on, that on all rows last."""
    folds = prepared.folds
    yield from (prepared.exclude_fold(fold).dataset for fold in range(folds.fold_count if folds else 0))
    yield prepared.dataset


def count_sequences(config: TrainerConfig, rows: datasets.Dataset) -> int:
    """What a batch is made of: rows, or with packing several of them together."""
    return len(packing.pack_dataset(rows, config.model.max_length)) if config.training.packing else len(rows)
