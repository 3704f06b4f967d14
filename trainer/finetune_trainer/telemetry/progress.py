"""How far the run is: one place that stages write to and `GET /progress` reads from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from finetune_trainer.contract import Progress, Stage


def current_timestamp() -> str:
    """The time as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ProgressReporter:
    """Holds the latest `Progress`; written by the run's thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.update_count = 0
        """How often something was reported; as long as it grows, the run moves."""
        self._latest = Progress(stage=Stage.DOWNLOADING, last_update_time=current_timestamp())

    def update(self, **fields: Any) -> None:
        """Change some fields of the latest progress, by their Python names."""
        with self._lock:
            merged = {**self._latest.model_dump(), **fields, "last_update_time": current_timestamp()}
            self._latest = Progress.model_validate(merged)
            self.update_count += 1

    @contextmanager
    def report_stage(self, stage: Stage) -> Iterator[None]:
        """Report this stage in the block, and the one before when the block ends."""
        previous_stage = self.get_latest().stage
        self.update(stage=stage)
        try:
            yield
        finally:
            self.update(stage=previous_stage)

    def heartbeat(self) -> None:
        """Others move, and this process waits for them."""
        with self._lock:
            self.update_count += 1

    def get_latest(self) -> Progress:
        """What to answer now."""
        with self._lock:
            return self._latest
