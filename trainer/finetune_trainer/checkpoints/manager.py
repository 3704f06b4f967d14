"""When to save while training, and the upload that goes on meanwhile. The store itself is in `checkpoint_store`."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.contract import Checkpoints
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.output_lock import OutputLock
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter, current_timestamp
from finetune_trainer.telemetry.run_log import RunLog
from finetune_trainer.telemetry.shutdown import GracefulShutdown, defer_signals
from finetune_trainer.telemetry.termination_message import RunContext
from finetune_trainer.training.state import TrainingSession

log = logging.getLogger(__name__)

RESTORED_DIR = "restored"
"""Folder that a checkpoint is restored to."""
DEFAULT_INTERVAL_SECONDS = 120.0
"""Between two checkpoints, unless a number of steps is set."""


@dataclass(frozen=True)
class CheckpointFolder:
    """A state that transformers has written to the disk, and the steps of all the run's trainings until then."""

    folder: Path
    step: int


class CheckpointUploader:
    """One upload at a time, in the background; of the states that wait for it only the newest counts."""

    def __init__(self, store: CheckpointStore, progress: ProgressReporter, check_lock: Callable[[], None]) -> None:
        self._store = store
        self._progress = progress
        self._check_lock = check_lock
        self._condition = threading.Condition()
        self._pending: CheckpointFolder | None = None
        self._is_uploading = False
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def submit(self, checkpoint: CheckpointFolder) -> None:
        """Upload this one as soon as the one under way is done, then remove its folder."""
        with self._condition:
            superseded, self._pending = self._pending, checkpoint
            self._condition.notify_all()
        if superseded:
            shutil.rmtree(superseded.folder, ignore_errors=True)

    def flush(self) -> None:
        """Wait until all that was handed over is stored, or has failed to be."""
        with self._condition:
            # In short turns: Python handles no signal while it waits for good.
            while self._is_uploading or self._pending:
                self._condition.wait(0.2)

    def _run(self) -> None:
        while True:
            with self._condition:
                while self._pending is None:
                    self._condition.wait()
                checkpoint, self._pending, self._is_uploading = self._pending, None, True
            try:
                self._upload(checkpoint)
            finally:
                with self._condition:
                    self._is_uploading = False
                    self._condition.notify_all()

    def _upload(self, checkpoint: CheckpointFolder) -> None:
        started_at = time.monotonic()
        try:
            self._store.save(checkpoint.folder, checkpoint.step, self._check_lock)
        except (TrainerError, OSError) as error:  # an earlier one is still there, and the next may succeed
            log.warning("checkpoint: the one of step %d could not be stored: %s", checkpoint.step, error)
        else:
            report_checkpoint(self._progress, checkpoint.step, current_timestamp())
            log.info("checkpoint: step %d is stored, after %.1f s", checkpoint.step, time.monotonic() - started_at)
        finally:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def report_checkpoint(progress: ProgressReporter, step: int, created_at: str) -> None:
    """Report a checkpoint that is complete in the store, where it is asked for and where it outlasts a kill."""
    progress.update(last_checkpoint_step=step, last_checkpoint_time=created_at)
    termination_message.record_checkpoint(progress.get_latest())


@dataclass
class CheckpointSaver:
    """Decides after each step whether to save, and takes over what was saved."""

    uploader: CheckpointUploader
    shutdown: GracefulShutdown
    output_lock: OutputLock
    run_log: RunLog | None = None
    every_steps: int | None = None
    every_seconds: float = DEFAULT_INTERVAL_SECONDS
    clock: Callable[[], float] = time.monotonic
    _last_saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._last_saved_at = self.clock()

    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether to save now. Raises `OUTPUT_BUSY` where nothing that is saved would count any more."""
        self.output_lock.check_not_lost()
        if (
            self.shutdown.requested or step >= total_steps
        ):  # after the last, so that no attempt trains again what only was not published
            return True
        if self.every_steps:
            return step % self.every_steps == 0
        return self.clock() - self._last_saved_at >= self.every_seconds

    def handle_saved(self, checkpoint: CheckpointFolder) -> None:
        """Store it: in the background, or before the process stops if it was told to."""
        self._last_saved_at = self.clock()
        if self.run_log:
            self.run_log.save(checkpoint.folder)
        self.uploader.submit(checkpoint)
        if self.shutdown.agreed_by_all:
            log.info("checkpoint: told to stop, storing step %d first", checkpoint.step)
            self.uploader.flush()
            collectives.release_waiters()
            self.shutdown.deliver()


@dataclass(frozen=True)
class CheckpointManager:
    """Keeps a run's work from one attempt to the next."""

    store: CheckpointStore
    output_lock: OutputLock
    uploader: CheckpointUploader
    settings: Checkpoints

    @contextmanager
    def open_session(self, context: RunContext, folder: Path) -> Iterator[TrainingSession]:
        """A training that goes on from the newest checkpoint, saves more, and is told to stop only with one saved."""
        checkpoint = self.store.fetch_newest(folder / RESTORED_DIR)
        if checkpoint:
            report_checkpoint(context.progress, checkpoint.step, checkpoint.created_at)
            if context.log:
                context.log.restore(checkpoint.folder)
        collectives.broadcast(checkpoint.step if checkpoint else 0)
        collectives.barrier(context.progress)
        with defer_signals(context) as shutdown:
            saver = CheckpointSaver(self.uploader, shutdown, self.output_lock, context.log, self.settings.every_steps)
            resume_from = checkpoint.folder if checkpoint else None
            yield TrainingSession(
                context.progress, resume_from=resume_from, saver=saver, log_metrics=context.log_metrics
            )
            self.uploader.flush()  # before a stop takes effect, or anything else is begun

    def clear(self) -> None:
        """The result is published: nothing will go on from here. A rest that stays behind harms nobody."""
        self.uploader.flush()
        try:
            self.store.clear()
        except TrainerError as error:
            log.warning("checkpoint: some are left behind: %s", error.message)


def build_checkpoint_manager(
    store: CheckpointStore, output_lock: OutputLock, context: RunContext, settings: Checkpoints
) -> CheckpointManager:
    """With its thread for uploads."""
    return CheckpointManager(
        store, output_lock, CheckpointUploader(store, context.progress, output_lock.check_held), settings
    )
