"""Train the adapter. TRL itself is in `trl_trainers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.modeling.library_errors import memory_errors
from finetune_trainer.modeling.loading import Loaded, check_vocabulary
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.records.evaluation import Energy
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training import early_stopping
from finetune_trainer.training.early_stopping import Look
from finetune_trainer.training.monitor import Position, Track, Watch, nowhere

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune_trainer.checkpoints.follower import Following
    from finetune_trainer.checkpoints.manager import Saver
    from finetune_trainer.data.preparation import PreparedData


def total_steps(training: Training, rows: int, workers: int = 1) -> int:
    """Optimizer steps of a run over `rows` rows; the last of an epoch may be a smaller one."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(rows / (training.batch_size * workers))
    return math.ceil((training.epochs or 0) * max(math.ceil(batches / training.gradient_accumulation), 1))


@dataclass(frozen=True)
class Session:
    """What accompanies a training: who hears of its progress, who else looks on, where it goes on from, and where it
    stands among those of its run.

    A callback may ask for a checkpoint (`control.should_save = True`): it lies at `<args.output_dir>/checkpoint-<step>`
    when `on_save` is called. `resume_from` is such a folder of an earlier attempt. `saver` decides about checkpoints
    that are kept for another attempt.
    """

    progress: ProgressReporter
    callbacks: Sequence[TrainerCallback] = ()
    resume_from: Path | None = None
    saver: Saver | Following | None = None
    position: Position = field(default_factory=Position)
    track: Track = nowhere


@dataclass(frozen=True)
class Trained:
    """Numbers of the training, the loss of each step, each look at the validation data, what came of the folds before
    it, and the GPUs' energy."""

    metrics: dict[str, float]
    losses: Sequence[tuple[int, float]] = ()
    looks: Sequence[Look] = ()
    fold_losses: Sequence[float] = ()
    energy: Energy = field(default_factory=Energy)
    learning_rates: Sequence[tuple[int, float]] = ()


def train(config: TrainerConfig, loaded: Loaded, prepared: PreparedData, session: Session, work_dir: Path) -> Trained:
    """Train the adapter in place on prepared rows, every one of them in every epoch.

    The metrics are `trainLoss` (mean over all steps whose loss is a number), `finalLoss` (of the last), `trainSeconds`,
    `steps`, `tokens` (trained, padding not counted, over all epochs), `supervisedTokens`, `tokensPerSecond` and, on a
    GPU, `energyWattHours` and `peakMemoryBytes` (of this attempt; all else is of the whole training); with validation
    data `baseEvalLoss` (before the first step), `evalLoss` (of the adapter that is taken), of `dpo` also
    `evalRewardAccuracy`, and `bestStep`, whose loss was lowest; with rows left out `leftOutLoss`, which is to them what
    `evalLoss` is to validation data.
    Raises `NON_FINITE_LOSS`, `OUT_OF_MEMORY`, and `MODEL_INVALID` for a tokenizer that is not the model's.
    """
    from finetune_trainer.training import trl_trainer

    check_vocabulary(loaded.tokenizer, loaded.model.get_input_embeddings().weight.shape[0])
    watch = Watch(session.progress, resolve_precision(config) == "fp16", session.position, session.track)
    with memory_errors(_advice(config)):
        result = trl_trainer.run(trl_trainer.Job(config, loaded, prepared, work_dir), session, watch)
    last = watch.end()
    finite = [loss for _, loss in result.losses if math.isfinite(loss)]
    metrics = {
        "trainLoss": math.fsum(finite) / max(len(finite), 1),
        "finalLoss": last.loss,
        "trainSeconds": round(result.seconds, 3),
        "steps": float(last.number),
        "tokens": float(result.tokens),
        "supervisedTokens": float(result.supervised),
        "tokensPerSecond": round(result.tokens / result.seconds, 1),
        **_seen(result.looks, config.training),
    }
    if result.peak_memory is not None:
        metrics["peakMemoryBytes"] = float(result.peak_memory)
    if result.energy.watt_hours is not None:
        metrics["energyWattHours"] = round(result.energy.watt_hours, 3)
    if result.left_out_loss is not None:
        metrics["leftOutLoss"] = watch.left_out(result.left_out_loss)
    return Trained(metrics, result.losses, result.looks, energy=result.energy, learning_rates=result.learning_rates)


def _seen(all_looks: Sequence[Look], training: Training) -> dict[str, float]:
    """What is said of the validation data."""
    if not all_looks:
        return {}
    first, best = all_looks[0], early_stopping.best(all_looks)
    base = {"baseEvalLoss": first.loss} if first.step == 0 else {}
    lowest = {"bestStep": float(best.step)} if best else {}
    taken = best if best and training.early_stopping else all_looks[-1]
    return {name: value for name, value in {**base, **taken.metrics, **lowest}.items() if math.isfinite(value)}


def _advice(config: TrainerConfig) -> str:
    training = config.training
    recompute = "" if training.gradient_checkpointing else ", turn training.gradientCheckpointing on"
    return (
        f"train with batchSize {training.batch_size} and maxLength {config.model.max_length}; lower training.batchSize "
        f"(and raise gradientAccumulation as much) or model.maxLength{recompute}, or give it more memory"
    )
