"""The outcome of an attempt that ended with an exception."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry.termination_message import build_outcome

_DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
_DISK_FULL_TEXTS = (
    "no space left on device",  # safetensors and tokenizers, whose errors have no errno
    # The writer of torch.save, which names no cause: https://github.com/pytorch/pytorch/issues/156955
    "unexpected pos ",
    "file write failed",
)
_DISK_FULL_ADVICE = (
    "no space left on device; set compute.scratch.size to a larger size, or use nodes with a larger disk if other pods "
    "fill it"
)


def describe_failure(error: BaseException) -> Outcome:
    """Return the outcome for an exception. An exception that is none of the expected ones is a bug.

    A full disk is the reason of every error that follows from it. A message that names the full volume is kept: it may
    not be the scratch volume.
    """
    if isinstance(error, TrainerError) and error.reason is Reason.DISK_FULL:
        return build_outcome(error.reason, error.message)
    disk_error = next(filter(is_disk_full, _iterate_causes(error)), None)
    if disk_error is not None:
        full_path = (disk_error.filename if isinstance(disk_error, OSError) else None) or "scratch"
        return build_outcome(Reason.DISK_FULL, f"{full_path}: {_DISK_FULL_ADVICE} ({disk_error})")
    if isinstance(error, TrainerError):
        return build_outcome(error.reason, error.message)
    if isinstance(error, MemoryError):
        return build_outcome(
            Reason.OUT_OF_MEMORY, "not enough memory on the host; increase the memory in compute.resources"
        )
    return build_outcome(Reason.INTERNAL_ERROR, f"{type(error).__name__}: {error}")


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of Python or of a library means that a file could not be written for lack of space."""
    if isinstance(error, TrainerError):
        return False
    if isinstance(error, OSError) and error.errno in _DISK_FULL_ERRNOS:
        return True
    return any(text in str(error).lower() for text in _DISK_FULL_TEXTS)


def is_bug(error: Exception) -> bool:
    """Return whether nothing but the traceback explains an exception."""
    return not isinstance(error, TrainerError) and describe_failure(error).reason is Reason.INTERNAL_ERROR


def _iterate_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from or during."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
