"""How far the run is: one place that stages write to and `GET /progress` reads from."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from finetune_trainer.contract import Progress, Stage


def now() -> str:
    """The time as Kubernetes writes it (RFC 3339, UTC, whole seconds)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ProgressReporter:
    """Holds the latest `Progress`; written by the run's thread, read by the server's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.updates = 0
        """How often something was reported; as long as it grows, the run moves."""
        self._latest = Progress(stage=Stage.DOWNLOADING, last_update_time=now())

    def update(self, **fields: Any) -> None:
        """Change some fields of the latest progress, by their Python names."""
        with self._lock:
            merged = {**self._latest.model_dump(), **fields, "last_update_time": now()}
            self._latest = Progress.model_validate(merged)
            self.updates += 1

    @contextmanager
    def during(self, stage: Stage) -> Iterator[None]:
        """Report this stage in the block, and the one before when the block ends."""
        before = self.latest().stage
        self.update(stage=stage)
        try:
            yield
        finally:
            self.update(stage=before)

    def alive(self) -> None:
        """Others move, and this process waits for them."""
        with self._lock:
            self.updates += 1

    def latest(self) -> Progress:
        """What to answer now."""
        with self._lock:
            return self._latest
