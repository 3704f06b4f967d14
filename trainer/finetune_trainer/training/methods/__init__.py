"""The training methods. To add one, write a module like `dpo` and register it here."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.methods.base import TrainingMethod
from finetune_trainer.training.methods.dpo import DPO
from finetune_trainer.training.methods.grpo import GRPO
from finetune_trainer.training.methods.kto import KTO
from finetune_trainer.training.methods.rloo import RLOO
from finetune_trainer.training.methods.sft import SFT

METHODS: Mapping[str, TrainingMethod] = {method.name: method for method in (SFT(), DPO(), KTO(), GRPO(), RLOO())}
"""The training methods by their value of `training.method`."""


def get_method(config: TrainerConfig) -> TrainingMethod:
    """Return the training method of a run."""
    return METHODS[config.training.method]
