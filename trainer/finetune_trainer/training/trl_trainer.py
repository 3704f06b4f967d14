"""Builds and runs TRL's trainers. Imports transformers, so import this module only after the backend."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_trainer.records.evaluation import EnergyUse, PreflightFinding, RewardPoint
from finetune_trainer.training.checkpoint_callback import CheckpointCallback
from finetune_trainer.training.dropout import preserve_dropout_settings
from finetune_trainer.training.early_stopping import EvalResult
from finetune_trainer.training.evaluation_callback import EvalCallback, HeldOutEvaluator
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.monitor import Step, TrainingMonitor
from finetune_trainer.training.preflight.runner import run_preflight
from finetune_trainer.training.reference_adapter import remove_reference, set_reference
from finetune_trainer.training.row_losses import RowLossHistory
from finetune_trainer.training.state import TrainerInputs, TrainingSession
from finetune_trainer.training.step_stop_callback import StepStopCallback
from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainOutput:
    """The counts and losses of a training, including those of earlier attempts."""

    losses: list[tuple[int, float]]
    """Optimizer step and loss."""
    learning_rates: list[tuple[int, float]]
    """Optimizer step and learning rate."""
    rewards: list[RewardPoint]
    tokens: int
    """Trained tokens, without padding."""
    supervised_tokens: int
    elapsed_seconds: float
    eval_results: list[EvalResult]
    row_losses: RowLossHistory
    peak_memory_bytes: int | None
    """Peak GPU memory of this attempt; None without a GPU."""
    energy: EnergyUse
    preflight: list[PreflightFinding]
    held_out_loss: float | None
    """Loss on the held-out fold, if there is one."""


def run(inputs: TrainerInputs, session: TrainingSession, monitor: TrainingMonitor) -> TrainOutput:
    """Train on the prepared rows, without dropping, truncating or masking any."""
    model = inputs.loaded.model
    with _preserve_router_settings(model), preserve_dropout_settings(model):
        output = _run_trainer(inputs, session, monitor)
    remove_reference(model)
    return output


@contextmanager
def _preserve_router_settings(model: PeftModel) -> Iterator[None]:
    """Restore the router settings of a mixture of experts after training: TRL disables the router loss in the model's
    config, which is published with a merged model."""
    config_values = vars(model.get_base_model().config.get_text_config())
    saved_settings = {
        name: config_values[name] for name in ("output_router_logits", "router_aux_loss_coef") if name in config_values
    }
    try:
        yield
    finally:
        config_values.update(saved_settings)


def _run_trainer(inputs: TrainerInputs, session: TrainingSession, monitor: TrainingMonitor) -> TrainOutput:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer = build_trainer(inputs)
    trainer.set_heartbeat(monitor.progress.heartbeat)
    findings = run_preflight(trainer, inputs, monitor.progress.heartbeat, session.record_preflight)
    trainer.token_counter.fold_losses = session.offset.fold_losses
    eval_callback = _add_callbacks(trainer, inputs, session, monitor)
    stop_callback = _add_stop_callback(trainer, session.stop_step, eval_callback)
    if session.resume_from is None:
        trainer.train()
    else:
        _resume(trainer, session.resume_from, eval_callback, stop_callback)
    return _collect_output(trainer, inputs, monitor, findings)


def _collect_output(
    trainer: TokenizedTrainer, inputs: TrainerInputs, monitor: TrainingMonitor, findings: list[PreflightFinding]
) -> TrainOutput:
    """Read the counts of a finished training, and measure the loss on its held-out fold, if there is one."""
    token_counter, held_out_rows = trainer.token_counter, inputs.prepared.held_out_fold
    energy = token_counter.energy_meter.measure()
    log.info("energy: %s", energy.message if energy.watt_hours is None else f"{energy.watt_hours:.1f} Wh")
    peak_memory_bytes = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else None
    held_out_loss = None
    if held_out_rows is not None:
        evaluator = HeldOutEvaluator(trainer, inputs, held_out_rows, monitor.progress.heartbeat)
        held_out_loss = evaluator.evaluate_loss()
    return TrainOutput(
        losses=_read_log_history(trainer.state, "loss"),
        learning_rates=_read_log_history(trainer.state, "learning_rate"),
        rewards=_read_rewards(trainer.state),
        tokens=token_counter.tokens,
        supervised_tokens=token_counter.supervised_tokens,
        elapsed_seconds=token_counter.elapsed_seconds,
        eval_results=token_counter.eval_results,
        row_losses=token_counter.row_losses,
        peak_memory_bytes=peak_memory_bytes,
        energy=energy,
        preflight=findings,
        held_out_loss=held_out_loss,
    )


def _read_rewards(state: TrainerState) -> list[RewardPoint]:
    """Return the rewards of a method that generates answers."""
    return [
        RewardPoint(step=entry["step"], reward=entry["reward"], answer_tokens=entry["completions/mean_length"])
        for entry in state.log_history
        if entry.get("reward") is not None
    ]


def _read_log_history(state: TrainerState, name: str) -> list[tuple[int, float]]:
    return [(int(entry["step"]), float(entry[name])) for entry in state.log_history if name in entry]


def _resume(
    trainer: TokenizedTrainer,
    checkpoint: Path,
    eval_callback: EvalCallback | None,
    stop_callback: StepStopCallback | None,
) -> None:
    """Train the remaining steps. If there are none, skip the training: transformers would train one more step.

    Raises `StepReached` if the checkpoint is at the step to stop at, or past it.
    """
    trainer.token_counter.restore(checkpoint)
    if eval_callback:
        eval_callback.restore(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    is_stopped = stop_callback is not None and stop_callback.is_reached(state)
    is_complete = state.global_step >= state.max_steps or (eval_callback and eval_callback.should_stop)
    if not is_stopped:
        trainer.token_counter.stop_evaluation = None  # of an earlier stop, which later checkpoints need not repeat
    if not is_stopped and not is_complete:
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    trainer.state = state
    trainer._load_from_checkpoint(str(checkpoint))
    last_log = next(logs for logs in reversed(state.log_history) if "loss" in logs)
    callbacks = trainer.callback_handler
    callbacks.on_train_begin(trainer.args, state, trainer.control)
    callbacks.on_log(trainer.args, state, trainer.control, last_log)
    if stop_callback and is_stopped:
        stop_callback.stop(state)
    callbacks.on_train_end(trainer.args, state, trainer.control)


def build_trainer(inputs: TrainerInputs) -> TokenizedTrainer:
    """Return the trainer of the training method, with the adapter in 32 bits, and set the reference model."""
    model = inputs.loaded.model
    # TRL rounds the adapter of a quantized model to bf16; it is small, and trains better in 32 bits.
    initial_weights = {name: weight.data.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    method = get_method(inputs.config)
    trainer = method.build_trainer(inputs)
    trainer.schedule_settings = inputs.config.training
    for name, weight in model.named_parameters():
        if name in initial_weights:
            weight.data = initial_weights[name]
    set_reference(model, method.copies_adapter(inputs.config))
    return trainer


def _add_callbacks(
    trainer: TokenizedTrainer, inputs: TrainerInputs, session: TrainingSession, monitor: TrainingMonitor
) -> EvalCallback | None:
    """Add all callbacks, and return the one that evaluates on the validation data, if there is one."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_MonitorCallback(monitor, trainer))
    eval_callback = None
    if inputs.prepared.validation is not None and get_method(inputs.config).measures_loss:
        evaluator = HeldOutEvaluator(trainer, inputs, inputs.prepared.validation, monitor.progress.heartbeat)
        eval_callback = EvalCallback(evaluator, monitor, inputs.config.training)
        trainer.add_callback(eval_callback)
    for callback in session.callbacks:
        trainer.add_callback(callback)
    if session.saver:
        trainer.add_callback(CheckpointCallback(session.saver, session.offset.steps_before))
    return eval_callback


def _add_stop_callback(
    trainer: TokenizedTrainer, stop_step: int | None, eval_callback: EvalCallback | None
) -> StepStopCallback | None:
    """Add the callback that stops the training, after all others, and return it. None if there is no such step."""
    if stop_step is None:
        return None
    stop_callback = StepStopCallback(stop_step, trainer.token_counter, eval_callback)
    trainer.add_callback(stop_callback)
    return stop_callback


class _MonitorCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Reports each step to the monitor."""

    def __init__(self, monitor: TrainingMonitor, trainer: TokenizedTrainer) -> None:
        self._monitor = monitor
        self._trainer = trainer

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        self._monitor.begin(state.max_steps, state.global_step, self._trainer.token_counter.tokens)

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, float], **___: Any
    ) -> None:
        if "loss" in logs:
            tokens = self._trainer.token_counter.tokens
            self._monitor.record_step(Step(state.global_step, state.max_steps, state.epoch or 0.0, tokens, logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        self._trainer.token_counter.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")
