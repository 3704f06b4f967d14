"""Cross-validation: one training for each fold, on the rows of all other folds, before the training on all rows.

The base model is loaded once. Each checkpoint contains the losses of the folds before it, which identify its training.
Imports torch, so import this module only after the backend.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from finetune_trainer.checkpoints.layout import COUNTS_NAME, FOLD_LOSSES_KEY
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.records.evaluation import CrossValidationResult
from finetune_trainer.training.adapter_snapshot import AdapterSnapshot
from finetune_trainer.training.monitor import MetricLogger, StepOffset
from finetune_trainer.training.single_run import train_once
from finetune_trainer.training.state import TrainingSession, TrainResult
from finetune_trainer.training.steps import count_steps_per_training

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData

log = logging.getLogger(__name__)


def train_with_folds(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, session: TrainingSession, work_dir: Path
) -> TrainResult:
    """Train on all rows except those of a fold, for each fold, then on all rows.

    The adapter and the metrics are those of the training on all rows. The metrics `crossValidationLoss` and
    `crossValidationDeviation` are the mean and the sample standard deviation of the losses of the folds.
    """
    folds = prepared.folds
    if folds is None:
        raise ValueError("the rows are not split into folds")
    initial_adapter = AdapterSnapshot(loaded.model)
    initial_adapter.capture()
    steps = count_steps_per_training(config, prepared, topology.world_size())
    losses = _read_fold_losses(session.resume_from)
    while (fold_index := len(losses)) < folds.fold_count:
        name = f"fold {fold_index + 1}/{folds.fold_count}"
        fold_session = replace(
            session,
            offset=StepOffset(name, sum(steps[:fold_index]), sum(steps), tuple(losses)),
            log_metrics=partial(_log_fold_metrics, session.log_metrics, fold_index + 1),
        )
        losses.append(_train_fold(config, loaded, prepared.exclude_fold(fold_index), fold_session, work_dir))
        session = replace(session, resume_from=None)  # the checkpoint was one of that fold
        _free_memory()
        initial_adapter.restore()
    session = replace(session, offset=StepOffset("refit", sum(steps[:-1]), sum(steps), tuple(losses)))
    fold_metrics = _summarize_folds(losses)
    result = train_once(config, loaded, prepared, session, work_dir)
    return _add_folds(result, losses, fold_metrics)


def _summarize_folds(losses: list[float]) -> dict[str, float]:
    summary = CrossValidationResult.from_losses(losses)
    log.info(
        "cross-validation: loss %.4f ± %.4f over %d folds; training on all rows next",
        summary.mean,
        summary.deviation,
        len(losses),
    )
    return {"crossValidationLoss": summary.mean, "crossValidationDeviation": summary.deviation}


def _add_folds(result: TrainResult, losses: list[float], fold_metrics: dict[str, float]) -> TrainResult:
    energy = result.energy
    if energy.watt_hours is not None:
        message = f"{energy.message}; of the training on all rows, without the folds"
        energy = energy.model_copy(update={"message": message})
    return replace(result, metrics={**result.metrics, **fold_metrics}, fold_losses=losses, energy=energy)


def _train_fold(
    config: TrainerConfig, loaded: LoadedModel, fold: PreparedData, session: TrainingSession, work_dir: Path
) -> float:
    """Train on all rows except those of a fold, and return the loss on the held-out rows."""
    name, held_out_count = session.offset.name, len(fold.held_out_fold or ())
    log.info("%s: training on %d rows, %d held out", name, len(fold.dataset), held_out_count)
    if config.training.early_stopping is None:
        fold = replace(fold, validation=None)  # an evaluation would change nothing
    # A folder of its own: the last checkpoint of the previous fold may still be uploading.
    result = train_once(config, loaded, fold, session, work_dir / name.replace("/", "-of-").replace(" ", "-"))
    loss = result.metrics["leftOutLoss"]
    log.info("%s: loss %.4f on the %d held-out rows", name, loss, held_out_count)
    return loss


def _log_fold_metrics(log_metrics: MetricLogger, fold_number: int, step: int, metrics: Mapping[str, float]) -> None:
    """Log the metrics of a fold under names of their own."""
    log_metrics(step, {f"fold{fold_number}/{name}": value for name, value in metrics.items()})


def _read_fold_losses(checkpoint: Path | None) -> list[float]:
    """Return the losses of the folds that were complete when the checkpoint was saved."""
    if checkpoint is None:
        return []
    content = json.loads((checkpoint / COUNTS_NAME).read_text(encoding="utf-8"))
    return list(content[FOLD_LOSSES_KEY])


def _free_memory() -> None:
    """Free the trainer and the optimizer, which reference each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
