"""Decides when a training saves checkpoints, uploads them in the background, and finds the one to resume from.

Rank 0 decides and stores. All other ranks save at the same steps and resume from the same checkpoint.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.context import OutputGuard, RunContext
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.errors import TrainerError
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter, current_timestamp
from finetune_trainer.telemetry.run_log import RunLog
from finetune_trainer.telemetry.shutdown import GracefulShutdown, defer_signals

log = logging.getLogger(__name__)

RESTORED_DIR = "restored"
"""Folder to which a checkpoint is downloaded."""
DEFAULT_INTERVAL_SECONDS = 120.0
"""Seconds between two checkpoints, unless `checkpoints.everySteps` is set."""


@dataclass(frozen=True)
class CheckpointFolder:
    """A state that transformers has written to disk, and the optimizer steps of the run until then."""

    folder: Path
    step: int


class CheckpointUploader:
    """Uploads checkpoints in the background, one at a time. Of those that wait, only the newest is kept."""

    def __init__(self, store: CheckpointStore, progress: ProgressReporter, check_lock: Callable[[], None]) -> None:
        self._store = store
        self._progress = progress
        self._check_lock = check_lock
        self._condition = threading.Condition()
        self._pending: CheckpointFolder | None = None
        self._is_uploading = False
        self._last_error: TrainerError | OSError | None = None
        threading.Thread(target=self._run, name="checkpoint", daemon=True).start()

    def submit(self, checkpoint: CheckpointFolder) -> None:
        """Upload this checkpoint when the current upload is done, then remove its folder."""
        with self._condition:
            superseded, self._pending = self._pending, checkpoint
            self._condition.notify_all()
        if superseded:
            shutil.rmtree(superseded.folder, ignore_errors=True)

    def flush(self) -> None:
        """Wait until all submitted checkpoints are stored or have failed."""
        with self._condition:
            # With a timeout, since Python handles no signals during an unlimited wait.
            while self._is_uploading or self._pending:
                self._condition.wait(0.2)

    def check_stored(self) -> None:
        """Wait as `flush` does. Raises the error of the newest checkpoint if it could not be stored."""
        self.flush()
        if self._last_error:
            raise self._last_error

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
        # An earlier checkpoint is still stored, and the next upload may succeed.
        except (TrainerError, OSError) as error:
            self._last_error = error
            log.warning("checkpoint: could not store step %d: %s", checkpoint.step, error)
        else:
            self._last_error = None
            report_checkpoint(self._progress, checkpoint.step, current_timestamp())
            log.info("checkpoint: stored step %d in %.1f s", checkpoint.step, time.monotonic() - started_at)
        finally:
            shutil.rmtree(checkpoint.folder, ignore_errors=True)


def report_checkpoint(progress: ProgressReporter, step: int, created_at: str) -> None:
    """Report a complete checkpoint in the progress and in the termination message, which survives a kill."""
    progress.update(last_checkpoint_step=step, last_checkpoint_time=created_at)
    termination_message.record_checkpoint(progress.get_latest())


class CheckpointSaver(Protocol):
    """The interface to checkpoints that a training calls after each optimizer step and after each saved state."""

    shutdown: GracefulShutdown

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether this rank asks for a checkpoint after this step."""

    def handle_saved(self, checkpoint: CheckpointFolder) -> None:
        """Take over a state that was written to disk; deliver a stop signal that waited for it."""

    def check_stored(self) -> None:
        """Wait until the newest checkpoint is stored. Raises the error if that failed."""


@dataclass
class PrimarySaver:
    """The saver of rank 0: decides when to save, and stores what was saved."""

    uploader: CheckpointUploader
    shutdown: GracefulShutdown
    output_lock: OutputGuard
    run_log: RunLog | None = None
    every_steps: int | None = None
    every_seconds: float = DEFAULT_INTERVAL_SECONDS
    clock: Callable[[], float] = time.monotonic
    _last_saved_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._last_saved_at = self.clock()

    def is_due(self, step: int, total_steps: int) -> bool:
        """Return whether to save now. Raises `OUTPUT_BUSY` if the output lock was lost."""
        self.output_lock.check_not_lost()
        # After the last step too: an attempt that fails between training and publishing is not trained again.
        if self.shutdown.requested or step >= total_steps:
            return True
        if self.every_steps:
            return step % self.every_steps == 0
        return self.clock() - self._last_saved_at >= self.every_seconds

    def handle_saved(self, checkpoint: CheckpointFolder) -> None:
        """Store the checkpoint in the background, or at once if the run is stopping."""
        self._last_saved_at = self.clock()
        if self.run_log:
            self.run_log.save(checkpoint.folder)
        self.uploader.submit(checkpoint)
        if self.shutdown.agreed_by_all:
            log.info("checkpoint: stop signal received, storing step %d first", checkpoint.step)
            self.uploader.flush()
            collectives.release_waiters()
            self.shutdown.deliver()

    def check_stored(self) -> None:
        """Wait until the newest checkpoint is stored. Raises the error if that failed."""
        self.uploader.check_stored()


@dataclass
class NonPrimarySaver:
    """The saver of all other ranks: leaves the decision and the upload to rank 0."""

    shutdown: GracefulShutdown

    def is_due(self, _: int, __: int) -> bool:
        """Return false: rank 0 decides."""
        return False

    def handle_saved(self, checkpoint: CheckpointFolder) -> None:
        """Remove the files, which only rank 0 uploads; if the run is stopping, wait until it has."""
        if topology.is_local_rank_zero():
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
        if self.shutdown.agreed_by_all:
            collectives.barrier()
            self.shutdown.deliver()

    def check_stored(self) -> None:
        """Do nothing: only rank 0 stores."""


@dataclass(frozen=True)
class CheckpointSession:
    """The checkpoints of one training: the folder of the one to resume from, and the saver of new ones."""

    resume_from: Path | None
    saver: CheckpointSaver


class CheckpointManager(Protocol):
    """Keeps the progress of a run from one attempt to the next."""

    @contextmanager
    def open_session(self) -> Iterator[CheckpointSession]:
        """Find the checkpoint to resume from, and defer stop signals in the block until a checkpoint is stored."""

    def clear(self) -> None:
        """Remove the checkpoints of the run after its result is published or rejected."""


@dataclass(frozen=True)
class PrimaryCheckpointManager:
    """The checkpoint manager of rank 0."""

    store: CheckpointStore
    uploader: CheckpointUploader
    output_lock: OutputGuard
    context: RunContext

    @contextmanager
    def open_session(self) -> Iterator[CheckpointSession]:
        """Resume from the newest usable checkpoint; stop signals take effect once a newer one is stored."""
        context = self.context
        checkpoint = self.store.fetch_newest(context.work_dir / RESTORED_DIR)
        if checkpoint:
            report_checkpoint(context.progress, checkpoint.step, checkpoint.created_at)
            if context.run_log:
                context.run_log.restore(checkpoint.folder)
        collectives.broadcast(checkpoint.step if checkpoint else 0)
        collectives.barrier(context.progress.heartbeat)
        with defer_signals(context.recorder) as shutdown:
            every_steps = context.config.training.checkpoints.every_steps
            saver = PrimarySaver(self.uploader, shutdown, self.output_lock, context.run_log, every_steps)
            yield CheckpointSession(checkpoint.folder if checkpoint else None, saver)
            self.uploader.flush()  # before a stop signal takes effect or the next stage begins

    def clear(self) -> None:
        """Remove the checkpoints of the run. A failure is logged only: nothing resumes from what remains."""
        self.uploader.flush()
        try:
            self.store.clear()
        except TrainerError as error:
            log.warning("checkpoint: could not remove all checkpoints: %s", error.message)


@dataclass(frozen=True)
class NonPrimaryCheckpointManager:
    """The checkpoint manager of all other ranks."""

    store: CheckpointStore
    context: RunContext

    @contextmanager
    def open_session(self) -> Iterator[CheckpointSession]:
        """Resume from the checkpoint that rank 0 chose."""
        folder = self.context.work_dir / RESTORED_DIR
        step = collectives.broadcast(0)
        if step and topology.is_local_rank_zero():
            self.store.fetch(step, folder)
        collectives.barrier(self.context.progress.heartbeat)
        with defer_signals(self.context.recorder) as shutdown:
            yield CheckpointSession(folder / f"checkpoint-{step}" if step else None, NonPrimarySaver(shutdown))

    def clear(self) -> None:
        """Do nothing: rank 0 clears the store."""


def create_checkpoint_manager(store: CheckpointStore, context: RunContext) -> CheckpointManager:
    """Create the manager for this rank; that of rank 0, which holds the output lock, starts a thread for uploads."""
    if context.output_lock is None:
        return NonPrimaryCheckpointManager(store, context)
    uploader = CheckpointUploader(store, context.progress, context.output_lock.check_held)
    return PrimaryCheckpointManager(store, uploader, context.output_lock, context)
