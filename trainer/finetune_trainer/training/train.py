"""Trains the adapter of a run: the folds of a cross-validation, if there is one, then all rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.loading import LoadedModel, check_vocabulary
from finetune_trainer.training.single_run import train_once
from finetune_trainer.training.state import TrainingSession, TrainResult

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData


def train(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, session: TrainingSession, work_dir: Path
) -> TrainResult:
    """Train the adapter in place on all prepared rows. With `prepared.folds`, cross-validate first.

    The metrics are:

    - `trainLoss`, the mean over all steps with a finite loss, and `finalLoss` of the last step
    - `trainSeconds`, `steps`, `tokens` (without padding, over all epochs), `supervisedTokens` and `tokensPerSecond`
    - on a GPU, `energyWattHours` and `peakMemoryBytes`; the latter is of this attempt, all others of the whole training
    - with validation data, `baseEvalLoss` before the first step, `evalLoss` and the extra metrics of the method for the
      resulting adapter, and `bestStep`, the step with the lowest loss
    - with a held-out fold, `leftOutLoss`, the loss on it
    - with folds, `crossValidationLoss` and `crossValidationDeviation`

    Raises `NON_FINITE_LOSS`, `OUT_OF_MEMORY`, `MODEL_INVALID` if the tokenizer does not match the model, and
    `MODEL_UNSUPPORTED` or `CONFIG_INVALID` if a check before the first step fails. Raises `StepReached` at
    `session.stop_step`.
    """
    check_vocabulary(loaded.tokenizer, loaded.model.get_input_embeddings().weight.shape[0])
    if prepared.folds is None:
        return train_once(config, loaded, prepared, session, work_dir)
    from finetune_trainer.training.cross_validation import train_with_folds

    return train_with_folds(config, loaded, prepared, session, work_dir)
