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

from finetune_trainer.checkpoints.store import COUNTS_NAME, FOLD_LOSSES
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.distributed import topology
from finetune_trainer.evaluation.losses import cross_validated
from finetune_trainer.modeling.loading import Loaded
from finetune_trainer.training import packing
from finetune_trainer.training.adapter_snapshot import AdapterCopy
from finetune_trainer.training.monitor import Position, Track
from finetune_trainer.training.train import Session, Trained, total_steps
from finetune_trainer.training.train import train as train_once

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData

log = logging.getLogger(__name__)


def train(config: TrainerConfig, loaded: Loaded, prepared: PreparedData, session: Session, work_dir: Path) -> Trained:
    """All trainings of the run; what is trained in the end, and the metrics, are those of the one on all rows.

    With folds, `fold_losses` and the metrics `crossValidationLoss`, their mean, and `crossValidationDeviation`, their
    sample standard deviation, are there too. Raises what `train.train` does.
    """
    folds = prepared.folds
    if folds is None:
        return train_once(config, loaded, prepared, session, work_dir)
    start = AdapterCopy(loaded.model)
    start.keep()
    steps, losses = steps_of_all(config, prepared, topology.size()), _losses_before(session.resume_from)
    while (done := len(losses)) < folds.count:
        position = Position(f"fold {done + 1}/{folds.count}", sum(steps[:done]), sum(steps), tuple(losses))
        fold = prepared.without(done)
        track = partial(_track_fold, session.track, done + 1)
        own = replace(session, position=position, track=track)
        losses.append(_train_fold(config, loaded, fold, own, work_dir))
        session = replace(session, resume_from=None)  # it was of that fold
        _free()
        start.put_back()
    position = Position("refit", sum(steps[:-1]), sum(steps), tuple(losses))
    found = _metrics(losses)
    trained = train_once(config, loaded, prepared, replace(session, position=position), work_dir)
    alone = {"message": f"{trained.energy.message}; of the training on all rows, without the folds"}
    energy = trained.energy.model_copy(update=alone if trained.energy.watt_hours is not None else {})
    return replace(trained, metrics={**trained.metrics, **found}, fold_losses=losses, energy=energy)


def _metrics(losses: list[float]) -> dict[str, float]:
    found = cross_validated(losses)
    if found is None:
        return {}
    log.info(
        "cross-validation: loss %.4f ± %.4f over %d folds; refit on all rows next",
        found.mean,
        found.deviation,
        len(losses),
    )
    return {"crossValidationLoss": found.mean, "crossValidationDeviation": found.deviation}


def _train_fold(config: TrainerConfig, loaded: Loaded, fold: PreparedData, session: Session, work_dir: Path) -> float:
    """The loss on the rows that are left out."""
    name, left_out = session.position.name, len(fold.left_out or ())
    log.info("%s: trains on %d rows, without %d", name, len(fold.dataset), left_out)
    if config.training.early_stopping is None:
        fold = replace(fold, validation=None)  # looking at it would change nothing
    # A folder of its own: the last checkpoint of the fold before may still be on its way to the store.
    trained = train_once(config, loaded, fold, session, work_dir / name.replace("/", "-of-").replace(" ", "-"))
    loss = trained.metrics["leftOutLoss"]
    log.info("%s: loss %.4f on the %d rows left out", name, loss, left_out)
    return loss


def _track_fold(track: Track, number: int, step: int, metrics: Mapping[str, float]) -> None:
    """Apart from those of the training on all rows, under the same tracker."""
    track(step, {f"fold{number}/{name}": value for name, value in metrics.items()})


def _losses_before(checkpoint: Path | None) -> list[float]:
    """Of the folds that were done when the checkpoint was made."""
    if checkpoint is None:
        return []
    content = json.loads((checkpoint / COUNTS_NAME).read_text(encoding="utf-8"))
    return list(content[FOLD_LOSSES])


def _free() -> None:
    """Trainer and optimizer, which refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def steps_of_all(config: TrainerConfig, prepared: PreparedData, workers: int) -> list[int]:
    """Optimizer steps of each training of the run, that on all rows last."""
    return [total_steps(config.training, sequences(config, rows), workers) for rows in rows_of_all(prepared)]


def rows_of_all(prepared: PreparedData) -> Iterator[datasets.Dataset]:
    """What each training of the run is on, that on all rows last."""
    folds = prepared.folds
    yield from (prepared.without(part).dataset for part in range(folds.count if folds else 0))
    yield prepared.dataset


def sequences(config: TrainerConfig, rows: datasets.Dataset) -> int:
    """What a batch is made of: rows, or with packing several of them together."""
    return len(packing.packed(rows, config.model.max_length)) if config.training.packing else len(rows)
