"""Translates errors of libraries in a check before the first step into `TrainerError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.library_errors import is_memory_error

_LIBRARY_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
_DEVICE_ERROR = re.compile("(CUDA|HIP|cuDNN|NCCL)( driver)? error", re.IGNORECASE)


@contextmanager
def translate_computation_errors(computation: str, reason: Reason, advice: str) -> Iterator[None]:
    """Translate an error of a computation with the model, such as `the backward pass of LlamaForCausalLM`.

    Errors that may be due to the machine pass, since another attempt may succeed: a lack of memory, or the GPU.
    """
    try:
        yield
    except _LIBRARY_ERRORS as error:
        if is_memory_error(error) or _DEVICE_ERROR.search(str(error)):
            raise
        problem = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise TrainerError(reason, f"{computation} fails ({problem}); {advice}") from error
