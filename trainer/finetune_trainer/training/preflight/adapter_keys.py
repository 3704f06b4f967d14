"""Checks before the first step that servers can load the adapter for its base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.modeling.adapter_keys import check_adapter_keys
from finetune_trainer.records.evaluation import PreflightFinding

if TYPE_CHECKING:
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer


def check_trained_adapter_keys(trainer: TokenizedTrainer) -> PreflightFinding:
    """Check the names and shapes of the weights that are trained. Raises `MODEL_UNSUPPORTED`.

    The base model knows the folder that it was loaded from.
    """
    return check_adapter_keys(trainer.model, Path(trainer.model.get_base_model().name_or_path))
