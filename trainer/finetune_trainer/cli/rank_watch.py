"""Kills ranks that do not respond. A rank that is stopped, or that holds Python's lock, cannot watch itself."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_CHECK_SECONDS = 1.0
_MAX_COUNTED_SECONDS = 5.0
"""Maximum that counts between two checks: while the whole node was suspended, no rank could respond."""


@dataclass
class RankWatch:
    """Watches the files that the ranks of a node touch while they respond."""

    node_folder: Path
    stall_seconds: float
    unresponsive: dict[int, float] = field(default_factory=dict)
    """Ranks that were killed, and for how many seconds they had not responded."""
    _touched: dict[int, float] = field(default_factory=dict)
    _silent_seconds: dict[int, float] = field(default_factory=dict)
    _checked_at: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Kill the ranks that have not responded for `stall_seconds`."""
        elapsed = time.monotonic() - self._checked_at
        if elapsed < _CHECK_SECONDS:
            return
        self._checked_at += elapsed
        for path in self.node_folder.glob("alive-*"):
            with suppress(FileNotFoundError):  # the rank has ended
                self._check_rank(path, min(elapsed, _MAX_COUNTED_SECONDS))

    def _check_rank(self, path: Path, elapsed: float) -> None:
        rank, touched = int(path.name.removeprefix("alive-")), path.stat().st_mtime
        is_silent = self._touched.get(rank) == touched
        self._touched[rank] = touched
        self._silent_seconds[rank] = self._silent_seconds[rank] + elapsed if is_silent else 0
        if self._silent_seconds[rank] >= self.stall_seconds and rank not in self.unresponsive:
            self._kill(rank, int(path.read_text()))

    def _kill(self, rank: int, process_id: int) -> None:
        import psutil

        for process in psutil.Process().children():
            if process.pid == process_id:  # else it has ended
                self.unresponsive[rank] = self._silent_seconds[rank]
                process.kill()
