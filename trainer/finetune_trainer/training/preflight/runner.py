"""Runs all checks before the first step. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.methods import get_method
from finetune_trainer.training.state import TrainerInputs

if TYPE_CHECKING:
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

_LOG_LEVELS = {"passed": logging.INFO, "warning": logging.WARNING}


def run_preflight(
    trainer: TokenizedTrainer, inputs: TrainerInputs, heartbeat: Callable[[], None]
) -> list[PreflightFinding]:
    """Run the checks that all methods share, and those of the method. All ranks must call it.

    Raises `MODEL_UNSUPPORTED`, or `CONFIG_INVALID` for a setting that the model does not support.
    """
    findings = get_method(inputs.config).run_preflight(trainer, inputs, heartbeat)
    for finding in findings:
        log.log(_LOG_LEVELS[finding.status], "preflight: %s", finding.message)
    return findings
