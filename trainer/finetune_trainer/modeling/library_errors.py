"""Translates errors of libraries into `TrainerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_OUT_OF_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextmanager
def translate_model_errors() -> Iterator[None]:
    """Translate the errors of transformers for files that it cannot load as a model into `MODEL_INVALID`, and a package
    that the model needs and this image does not have into `MODEL_UNSUPPORTED`."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        problem = str(error).strip().splitlines()[0]
        message = f"the base model needs a package that the trainer does not have, so use another model: {problem}"
        raise TrainerError(Reason.MODEL_UNSUPPORTED, message) from error
    except (OSError, ValueError, KeyError, SafetensorError, StrictDataclassError) as error:
        raise TrainerError(Reason.MODEL_INVALID, f"the base model cannot be loaded: {error}") from error


def is_memory_error(error: Exception) -> bool:
    """Return whether an error is due to a lack of GPU or host memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY_MESSAGES)


@contextmanager
def translate_memory_errors(action: str) -> Iterator[None]:
    """Translate a lack of GPU or host memory into `OUT_OF_MEMORY`: `not enough memory to {action}`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's
        if not is_memory_error(error):
            raise
        raise TrainerError(Reason.OUT_OF_MEMORY, f"not enough memory to {action}") from error
