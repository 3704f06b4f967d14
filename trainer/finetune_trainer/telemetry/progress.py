"""The progress of a run: written by its stages, served by `GET /progress`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from finetune_trainer.contract import CacheResult, Progress, Stage


def current_timestamp() -> str:
    """Return the current time as in Kubernetes (RFC 3339, UTC, whole seconds)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ProgressReporter:
    """Holds the latest `Progress`. Threads of the run write it, the thread of the HTTP server reads it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.update_count = 0
        """Number of reports and heartbeats; the run is not stalled while it grows."""
        self.model_cache: CacheResult | None = None
        """Where the base model came from, if the run has a model cache."""
        self._latest = Progress(stage=Stage.DOWNLOADING, last_update_time=current_timestamp())

    def update(self, **fields: Any) -> None:
        """Update fields of the latest progress, by their Python names."""
        with self._lock:
            merged = {**self._latest.model_dump(), **fields, "last_update_time": current_timestamp()}
            self._latest = Progress.model_validate(merged)
            self.update_count += 1

    @contextmanager
    def report_stage(self, stage: Stage) -> Iterator[None]:
        """Report this stage in the block, and the previous one afterwards."""
        previous_stage = self.get_latest().stage
        self.update(stage=stage)
        try:
            yield
        finally:
            self.update(stage=previous_stage)

    def heartbeat(self) -> None:
        """Count as activity without a change, for example while this process waits for other ranks."""
        with self._lock:
            self.update_count += 1

    def get_latest(self) -> Progress:
        """Return the latest progress."""
        with self._lock:
            return self._latest
