"""Translates errors of libraries into `TrainerError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.text import to_one_line

_OUT_OF_MEMORY_MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

_VALUE_ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError)
"""Errors of transformers for values of config.json that it does not check, such as a model with 0 attention heads."""


@contextmanager
def translate_model_errors(subject: str = "the base model") -> Iterator[None]:
    """Translate the errors of transformers for files that it cannot load into `MODEL_INVALID`, and a package that the
    model needs and this image does not have into `MODEL_UNSUPPORTED`. `subject` is what the block loads."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as error:
        problem = str(error).strip().splitlines()[0]
        message = f"the base model needs a package that the trainer does not have, so use another model: {problem}"
        raise TrainerError(Reason.MODEL_UNSUPPORTED, message) from error
    except (OSError, ValueError, SafetensorError, StrictDataclassError) as error:
        problem = to_one_line(str(error))
        raise TrainerError(Reason.MODEL_INVALID, f"{subject} cannot be loaded: {problem}") from error
    except _VALUE_ERRORS as error:
        problem = f"transformers fails with {type(error).__name__} ({error}); check the values in its config.json"
        raise TrainerError(Reason.MODEL_INVALID, f"{subject} cannot be loaded: {problem}") from error


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
