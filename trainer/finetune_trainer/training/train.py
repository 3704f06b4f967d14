"""Train the adapter. TRL itself is in `trl_trainers`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.modeling.library_errors import translate_memory_errors
from finetune_trainer.modeling.loading import LoadedModel, check_vocabulary
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.records.evaluation import EnergyUse
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training import early_stopping
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.monitor import MetricLogger, StepOffset, TrainingMonitor, discard_metrics

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from finetune_trainer.checkpoints.manager import CheckpointSaver
    from finetune_trainer.data.preparation import PreparedData


def count_optimizer_steps(training: Training, row_count: int, world_size: int = 1) -> int:
    """Optimizer steps of a run over `rows` rows; the last of an epoch may be a smaller one."""
    if training.max_steps is not None:
        return training.max_steps
    batches = math.ceil(row_count / (training.batch_size * world_size))
    return math.ceil((training.epochs or 0) * max(math.ceil(batches / training.gradient_accumulation), 1))


@dataclass(frozen=True)
class TrainingSession:
    """What accompanies a training: who hears of its progress, who else looks on, where it goes on from, and where it
    stands among those of its run.

    A callback may ask for a checkpoint (`control.should_save = True`): it lies at `<args.output_dir>/checkpoint-<step>`
    when `on_save` is called. `resume_from` is such a folder of an earlier attempt. `saver` decides about checkpoints
    that are kept for another attempt.
    """

    progress: ProgressReporter
    callbacks: Sequence[TrainerCallback] = ()
    resume_from: Path | None = None
    saver: CheckpointSaver | None = None
    offset: StepOffset = field(default_factory=StepOffset)
    log_metrics: MetricLogger = discard_metrics


@dataclass(frozen=True)
class TrainResult:
    """Numbers of the training, the loss of each step, each look at the validation data, what came of the folds before
    it, and the GPUs' energy."""

    metrics: dict[str, float]
    losses: Sequence[tuple[int, float]] = ()
    eval_results: Sequence[EvalResult] = ()
    fold_losses: Sequence[float] = ()
    energy: EnergyUse = field(default_factory=EnergyUse)
    learning_rates: Sequence[tuple[int, float]] = ()


def train(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, session: TrainingSession, work_dir: Path
) -> TrainResult:
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
    monitor = TrainingMonitor(
        session.progress, resolve_precision(config) == "fp16", session.offset, session.log_metrics
    )
    with translate_memory_errors(_build_memory_advice(config)):
        output = trl_trainer.run(trl_trainer.TrainerInputs(config, loaded, prepared, work_dir), session, monitor)
    last_step = monitor.finish()
    finite_losses = [loss for _, loss in output.losses if math.isfinite(loss)]
    metrics = {
        "trainLoss": math.fsum(finite_losses) / max(len(finite_losses), 1),
        "finalLoss": last_step.loss,
        "trainSeconds": round(output.elapsed_seconds, 3),
        "steps": float(last_step.number),
        "tokens": float(output.tokens),
        "supervisedTokens": float(output.supervised_tokens),
        "tokensPerSecond": round(output.tokens / output.elapsed_seconds, 1),
        **_build_eval_metrics(output.eval_results, config.training),
    }
    if output.peak_memory_bytes is not None:
        metrics["peakMemoryBytes"] = float(output.peak_memory_bytes)
    if output.energy.watt_hours is not None:
        metrics["energyWattHours"] = round(output.energy.watt_hours, 3)
    if output.held_out_loss is not None:
        metrics["leftOutLoss"] = monitor.check_held_out_loss(output.held_out_loss)
    return TrainResult(
        metrics, output.losses, output.eval_results, energy=output.energy, learning_rates=output.learning_rates
    )


def _build_eval_metrics(eval_results: Sequence[EvalResult], training: Training) -> dict[str, float]:
    """What is said of the validation data."""
    if not eval_results:
        return {}
    first_result, best_result = eval_results[0], early_stopping.find_best(eval_results)
    base_metrics = {"baseEvalLoss": first_result.loss} if first_result.step == 0 else {}
    best_step_metrics = {"bestStep": float(best_result.step)} if best_result else {}
    final_result = best_result if best_result and training.early_stopping else eval_results[-1]
    return {
        name: value
        for name, value in {**base_metrics, **final_result.metrics, **best_step_metrics}.items()
        if math.isfinite(value)
    }


def _build_memory_advice(config: TrainerConfig) -> str:
    training = config.training
    checkpointing_advice = "" if training.gradient_checkpointing else ", turn training.gradientCheckpointing on"
    return (
        f"train with batchSize {training.batch_size} and maxLength {config.model.max_length}; lower training.batchSize "
        f"(and raise gradientAccumulation as much) or model.maxLength{checkpointing_advice}, or give it more memory"
    )
