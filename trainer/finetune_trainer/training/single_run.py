"""Runs one training and collects its metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig, Training
from finetune_trainer.modeling.library_errors import translate_memory_errors
from finetune_trainer.modeling.loading import LoadedModel
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training import early_stopping
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.monitor import Step, TrainingMonitor
from finetune_trainer.training.state import TrainerInputs, TrainingSession, TrainResult
from finetune_trainer.training.steps import advise_accumulation

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData
    from finetune_trainer.training.trl_trainer import TrainOutput


def train_once(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, session: TrainingSession, work_dir: Path
) -> TrainResult:
    """Train the adapter in place on all prepared rows, and return the metrics of the training.

    Raises `NON_FINITE_LOSS`, `OUT_OF_MEMORY`, and `MODEL_UNSUPPORTED` or `CONFIG_INVALID` if a preflight check
    fails. Raises `StepReached` at `session.stop_step`, when the checkpoint of that step is passed to the saver.
    """
    from finetune_trainer.training import trl_trainer

    monitor = TrainingMonitor(
        session.progress, resolve_precision(config) == "fp16", session.offset, session.log_metrics
    )
    with translate_memory_errors(build_memory_advice(config)):
        output = trl_trainer.run(TrainerInputs(config, loaded, prepared, work_dir), session, monitor)
    metrics = _build_metrics(output, monitor.finish())
    metrics |= _build_eval_metrics(output.eval_results, config.training)
    if output.held_out_loss is not None:
        metrics["leftOutLoss"] = monitor.check_held_out_loss(output.held_out_loss)
    return TrainResult(
        metrics,
        output.losses,
        output.eval_results,
        energy=output.energy,
        learning_rates=output.learning_rates,
        rewards=output.rewards,
        preflight=output.preflight,
        row_losses=output.row_losses,
    )


def _build_metrics(output: TrainOutput, last_step: Step) -> dict[str, float]:
    """Return the metrics of the training itself."""
    finite_losses = [loss for _, loss in output.losses if math.isfinite(loss)]
    metrics = {
        "trainLoss": math.fsum(finite_losses) / max(len(finite_losses), 1),
        "finalLoss": last_step.loss,
        "trainSeconds": round(output.elapsed_seconds, 3),
        "steps": float(last_step.number),
        "tokens": float(output.tokens),
        "supervisedTokens": float(output.supervised_tokens),
        "tokensPerSecond": round(output.tokens / output.elapsed_seconds, 1),
    }
    if output.peak_memory_bytes is not None:
        metrics["peakMemoryBytes"] = float(output.peak_memory_bytes)
    if output.energy.watt_hours is not None:
        metrics["energyWattHours"] = round(output.energy.watt_hours, 3)
    return metrics


def _build_eval_metrics(eval_results: Sequence[EvalResult], training: Training) -> dict[str, float]:
    """Return the metrics of the published adapter on the validation data."""
    published_result = early_stopping.find_published(eval_results, training.early_stopping)
    if published_result is None:
        return {}
    first_result, best_result = eval_results[0], early_stopping.find_best(eval_results)
    base_metrics = {"baseEvalLoss": first_result.loss} if first_result.step == 0 else {}
    best_step_metrics = {"bestStep": float(best_result.step)} if best_result else {}
    return {
        name: value
        for name, value in {**base_metrics, **published_result.metrics, **best_step_metrics}.items()
        if math.isfinite(value)
    }


def build_memory_advice(config: TrainerConfig) -> str:
    """Return what to change if the training does not fit the memory, as the end of a sentence."""
    training = config.training
    checkpointing_advice = "" if training.gradient_checkpointing else ", enable training.gradientCheckpointing"
    return (
        f"train with batchSize {training.batch_size} and maxLength {config.model.max_length}; lower training.batchSize"
        f"{advise_accumulation(training)} or model.maxLength{checkpointing_advice}, or provide more memory"
    )
