"""Hides optional packages that the libraries import if they are installed, although the trainer does not need them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED_PACKAGES = ("scipy", "sklearn", "torchao", "torchaudio", "torchvision")
"""Together with bitsandbytes, they take a quarter of the import time and 100 MiB of memory."""
_TRACKER_PACKAGES = ("mlflow", "wandb")
"""TRL imports them for its own reporting. The trainer reports in `tracking`."""


@contextmanager
def hide_optional_packages(backend: str, quantization: str) -> Iterator[None]:
    """Make some packages appear as not installed within the block, unless they have been imported already.

    transformers, PEFT and TRL check once and remember the result. Unsloth needs some of the packages.
    """
    unused = [*_UNUSED_PACKAGES, *(["bitsandbytes"] if quantization == "none" else [])] if backend != "unsloth" else []
    names = [name for name in (*unused, *_TRACKER_PACKAGES) if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # makes `import` raise ModuleNotFoundError
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
