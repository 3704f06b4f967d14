"""Runs the Triton kernels of Liger on a CPU, in Triton's interpreter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest

_RSQRT_MODULES = ("rms_norm", "layer_norm")
_TANH_MODULES = ("geglu", "cross_entropy")


@contextmanager
def interpret_kernels(model_class: type) -> Iterator[None]:
    """Import Liger, and restore the module of transformers with this class at the end, in which Liger replaces classes
    and functions.

    `TRITON_INTERPRET` must be 1 since before Triton was imported, which imports of torch can do.
    """
    with pytest.MonkeyPatch.context() as patch:
        importlib.import_module("liger_kernel.transformers")
        _replace_gpu_functions(patch)
        _restore_at_end(sys.modules[model_class.__module__], patch)
        yield


def _restore_at_end(module: ModuleType, patch: pytest.MonkeyPatch) -> None:
    for name, value in list(vars(module).items()):
        patch.setattr(module, name, value)


def _replace_gpu_functions(patch: pytest.MonkeyPatch) -> None:
    """Replace functions of CUDA's library, which the interpreter does not have, and pass floats to kernels as tensors,
    as the compiler does: the interpreter passes them as they are."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._implicit_cvt
    patch.setattr(interpreter, "_implicit_cvt", lambda value: convert(_convert_float(value)))
    # The interpreter replaces functions of `tl` while a kernel runs, so they are looked up then.
    for name in _RSQRT_MODULES:
        patch.setattr(importlib.import_module(f"liger_kernel.ops.{name}"), "rsqrt", lambda x: tl.math.rsqrt(x))
    for name in _TANH_MODULES:
        patch.setattr(importlib.import_module(f"liger_kernel.ops.{name}"), "tanh", lambda x: 2 * tl.sigmoid(2 * x) - 1)


def _convert_float(value: object) -> object:
    """Return a float as a tensor of Triton's interpreter, and any other value as it is."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if not isinstance(value, float):
        return value
    return tl.tensor(TensorHandle(np.array([value], dtype=np.float32), tl.float32), tl.float32)
