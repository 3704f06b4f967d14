"""Keeps out what the libraries import wherever it is installed, though training on text needs none of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED_PACKAGES = ("scipy", "sklearn", "torchao", "torchaudio", "torchvision")
"""With bitsandbytes a quarter of the time that the imports take, and 100 MiB."""
_TRACKER_PACKAGES = ("mlflow", "wandb")
"""TRL imports them in case somebody uses its own reports; ours are in `tracking`."""


@contextmanager
def hide_optional_packages(backend: str, quantization: str) -> Iterator[None]:
    """In this block some packages look as if they were not installed, unless they have been imported already.

    transformers, PEFT and TRL look once and remember; Unsloth needs some of them.
    """
    unused = [*_UNUSED_PACKAGES, *(["bitsandbytes"] if quantization == "none" else [])] if backend != "unsloth" else []
    names = [name for name in (*unused, *_TRACKER_PACKAGES) if name not in sys.modules]
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to say so
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
