"""Checks before the first step that the model can run at all with the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


def check_gradient_checkpointing(trainer: TokenizedTrainer) -> None:
    """Raise `CONFIG_INVALID` if gradient checkpointing is configured, but the model does not support it."""
    model = trainer.model.get_base_model()
    if trainer.args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        message = (
            f"training.gradientCheckpointing: {type(model).__name__} does not support gradient checkpointing; set "
            "training.gradientCheckpointing to false, and lower training.batchSize if the memory is exceeded"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
