"""Stops a training at an optimizer step. Imports transformers, so import this module only after the backend."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.training.evaluation_callback import EvalCallback
from finetune_trainer.training.step_stop import StepEvaluation, StepReached
from finetune_trainer.training.tokenized_trainer import TokenCounter

log = logging.getLogger(__name__)


@dataclass
class StepStopCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Evaluates and requests a checkpoint at `stop_step`, and ends the training once that is on disk.

    It comes after all other callbacks, so that they do the same at this step as in a training without a stop. The
    evaluation is stored in the checkpoint, but is no result of the training: early stopping would count it.
    """

    stop_step: int
    token_counter: TokenCounter
    eval_callback: EvalCallback | None
    """Evaluates on the validation data. None if there is none."""

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if self.stop_step > state.max_steps:
            log.info("the training ends at step %d, before step %d to stop at", state.max_steps, self.stop_step)
        else:
            log.info("the training stops at step %d of %d (suspendAtStep)", self.stop_step, state.max_steps)

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        if self.is_reached(state):
            if self.eval_callback:
                self.token_counter.stop_evaluation = self.eval_callback.measure_step(state.global_step)
            control.should_save = True

    def on_save(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if self.is_reached(state):
            self.stop(state)

    def is_reached(self, state: TrainerState) -> bool:
        """Return whether the training is at the step to stop at, or past it."""
        return bool(state.global_step >= self.stop_step)

    def stop(self, state: TrainerState) -> NoReturn:
        """Raise `StepReached` with the evaluation of the current step: the one of the checkpoint, if it has one."""
        evaluation = self.token_counter.stop_evaluation
        if evaluation is None or evaluation.step != state.global_step:
            evaluation = (
                self.eval_callback.measure_step(state.global_step) if self.eval_callback else _read_training_loss(state)
            )
        raise StepReached(evaluation, state.max_steps)


def _read_training_loss(state: TrainerState) -> StepEvaluation:
    """Return the loss of the last logged step, which is each step."""
    loss = next(logs["loss"] for logs in reversed(state.log_history) if "loss" in logs)
    return StepEvaluation(state.global_step, float(loss), on_validation=False)
