"""The optimizer step that the environment stops the training at."""

from __future__ import annotations

import os
import re

from finetune_trainer.contract import SUSPEND_AT_STEP_ENV, Reason, TrainerConfig
from finetune_trainer.errors import TrainerError

STEP_PATTERN = re.compile(r"[1-9][0-9]{0,9}")


def read_suspend_step(config: TrainerConfig) -> int | None:
    """Return the step of `FINETUNE_SUSPEND_AT_STEP`, or None if it is unset.

    Raises `CONFIG_INVALID` for a value that is not a positive integer, and for a cross-validation.
    """
    text = os.environ.get(SUSPEND_AT_STEP_ENV)
    if not text:
        return None
    if not STEP_PATTERN.fullmatch(text):
        message = f"{SUSPEND_AT_STEP_ENV} must be an optimizer step, an integer from 1 on, but is {text[:80]!r}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    if config.training.cross_validation:
        message = (
            f"{SUSPEND_AT_STEP_ENV} cannot be used with training.crossValidation, whose steps belong to several "
            "trainings; unset one of them"
        )
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return int(text)
