"""Runs the preflight checks of a run without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.modeling.library_errors import translate_memory_errors
from finetune_trainer.modeling.loading import LoadedModel, check_vocabulary
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.training.single_run import build_memory_advice
from finetune_trainer.training.state import TrainerInputs

if TYPE_CHECKING:
    from finetune_trainer.data.preparation import PreparedData


def check_training(
    config: TrainerConfig, loaded: LoadedModel, prepared: PreparedData, work_dir: Path
) -> list[PreflightFinding]:
    """Build the trainer as `train` does for all rows, and run its checks. The model must not be used afterwards.

    Raises as `train` does before its first step.
    """
    from finetune_trainer.training import trl_trainer
    from finetune_trainer.training.preflight.runner import run_preflight

    check_vocabulary(loaded.tokenizer, loaded.model.get_input_embeddings().weight.shape[0])
    inputs = TrainerInputs(config, loaded, prepared, work_dir)
    with translate_memory_errors(build_memory_advice(config)):
        return run_preflight(trl_trainer.build_trainer(inputs), inputs, ProgressReporter().heartbeat)
