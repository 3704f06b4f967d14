"""Makes imports of large libraries faster: hides optional packages that the trainer does not need, pauses the garbage
collector, and lists the installed distributions once."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED_PACKAGES = ("aiohttp", "scipy", "sklearn", "torchao", "torchaudio", "torchvision")
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


@contextmanager
def pause_garbage_collector() -> Iterator[None]:
    """Run no garbage collection within the block, which imports modules: collections take a fifth of that time.

    If the block has imported any, `gc.freeze` exempts all present objects from later collections. Most of them belong
    to modules, which are never freed, and going through them takes 0.3 s.
    """
    was_enabled, module_count = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > module_count:
            gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def list_distributions_once() -> Iterator[None]:
    """Call `importlib.metadata.packages_distributions` only once within the block. transformers and TRL call it when
    they are imported, and it reads the records of all installed packages, which takes a quarter of a second."""
    list_distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = functools.cache(list_distributions)
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = list_distributions
