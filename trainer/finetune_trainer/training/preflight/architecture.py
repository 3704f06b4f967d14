"""Checks before the first step that the model can run at all with the settings. Imports torch, so import this module
only after the backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from finetune_trainer.training.preflight.sample import Sample
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


def check_forward_pass(sample: Sample) -> None:
    """Raise `MODEL_UNSUPPORTED` if the model with its adapter fails on a row for another reason than the machine."""
    row, model = sample.rows[-1], sample.trainer.model
    input_ids = row["input_ids"] if "input_ids" in row else row["prompt_ids"]
    with sample.translate_errors("forward pass"):
        for is_training in (True, False):  # some models compute something else when they are trained
            model.train(is_training)
            model(input_ids=torch.tensor([input_ids], device=model.device), use_cache=False)


def check_gradient_checkpointing(trainer: TokenizedTrainer) -> None:
    """Raise `CONFIG_INVALID` if gradient checkpointing is configured, but the model does not support it."""
    model = trainer.model.get_base_model()
    if trainer.args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        message = (
            f"training.gradientCheckpointing: {type(model).__name__} does not support gradient checkpointing; set "
            "training.gradientCheckpointing to false, and lower training.batchSize if the memory is exceeded"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
