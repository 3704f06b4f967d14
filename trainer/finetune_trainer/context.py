"""The context of a run: what every stage needs, fixed when the run begins."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_trainer.contract import Stage, TrainerConfig
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.run_log import RunLog
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.tracking.tracker import Tracker

log = logging.getLogger(__name__)


class OutputGuard(Protocol):
    """The lock on the output of a run, as far as stages before publishing need it."""

    def check_held(self) -> None:
        """Raise `OUTPUT_BUSY` unless the store says that this attempt holds the lock. Sends a request."""

    def check_not_lost(self) -> None:
        """Raise `OUTPUT_BUSY` if the last heartbeat found that the lock was lost. Sends no request."""


@dataclass(frozen=True)
class RunContext:
    """Configuration, work folder and reporting of one attempt of a run, in one of its processes."""

    config: TrainerConfig
    work_dir: Path
    """Folder for all files of this attempt. The ranks of a node share it."""
    recorder: OutcomeRecorder
    output_lock: OutputGuard | None = None
    """Only rank 0 holds it."""
    run_log: RunLog | None = None
    """Only rank 0 captures the log."""
    tracker: Tracker | None = None
    """Only rank 0 has one, if `tracking` names a server."""

    @property
    def progress(self) -> ProgressReporter:
        """The progress of the run, which `GET /progress` serves."""
        return self.recorder.progress

    def enter_stage(self, stage: Stage) -> None:
        """Report and log that this stage begins."""
        self.progress.update(stage=stage)
        log.info("stage: %s", stage)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send metrics of an optimizer step to the tracker, if there is one."""
        if self.tracker:
            self.tracker.log(step, metrics)
