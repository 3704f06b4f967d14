"""The outcome of an attempt that ended with an exception."""

from __future__ import annotations

import errno

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.termination_message import build_outcome


def describe_failure(error: Exception) -> Outcome:
    """Return the outcome for an exception. An exception that is none of the expected ones is a bug."""
    if isinstance(error, TrainerError):
        return build_outcome(error.reason, error.message)
    if isinstance(error, MemoryError):
        return build_outcome(
            Reason.OUT_OF_MEMORY, "not enough memory on the host; increase the memory in compute.resources"
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        full_path = error.filename or "scratch"
        return build_outcome(Reason.DISK_FULL, f"{full_path}: no space left on device; increase compute.scratch")
    return build_outcome(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def is_bug(error: Exception) -> bool:
    """Return whether nothing but the traceback explains an exception."""
    return not isinstance(error, TrainerError) and describe_failure(error).reason is Reason.INTERNAL_ERROR
