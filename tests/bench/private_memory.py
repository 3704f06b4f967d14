"""Measures the private memory of a process while it works."""

from __future__ import annotations

import re
import threading
from pathlib import Path


class PrivateMemory:
    """Samples the private memory of this process in MiB and keeps its maximum.

    Pages of mapped files are not counted, because the kernel reclaims them when it needs memory.
    """

    def __init__(self, interval_seconds: float = 0.05) -> None:
        self._interval_seconds = interval_seconds

    def __enter__(self) -> PrivateMemory:
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def reset(self) -> int:
        """Return the current private memory in MiB, and count the maximum from now on."""
        self.peak = _read_private_memory()
        return self.peak

    def _sample(self) -> None:
        while not self._done.wait(self._interval_seconds):
            self.peak = max(self.peak, _read_private_memory())


def _read_private_memory() -> int:
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) >> 10 if match else 0
