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
from finetune_trainer.publishing.output_lock import Claim
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter, now
from finetune_trainer.telemetry.run_log import RunLog
from finetune_trainer.telemetry.shutdown import StopRequest, deferred
from finetune_trainer.telemetry.termination_message import Known
from finetune_trainer.training.train import Session

log = logging.getLogger(__name__)

RESTORED = "restored"
"""Folder that a checkpoint is restored to."""
SECONDS = 120.0
"""Between two checkpoints, unless a number of steps is set."""


@dataclass(frozen=True)
class Saved:
    """A state that transformers has written to the disk, and the steps of all the run's trainings until then."""

    folder: Path
    step: int


class Uploader:
    """One upload at a time, in the background; of the states that wait for it only the newest counts."""

    def __init__(self, store: CheckpointStore, progress: ProgressReporter, check: Callable[[], None]) -> None:
        self._store = store
        self._progress = progress
        self._check = check
        self._changed = threading.Condition()
        self._waiting: Saved | None = None
        self._busy = False
        threading.Thread(target=self._work, name="checkpoint", daemon=True).start()

    def hand_over(self, saved: Saved) -> None:
        """Upload this one as soon as the one under way is done, then remove its folder."""
        with self._changed:
            passed_over, self._waiting = self._waiting, saved
            self._changed.notify_all()
        if passed_over:
            shutil.rmtree(passed_over.folder, ignore_errors=True)

    def finish(self) -> None:
        """Wait until all that was handed over is stored, or has failed to be."""
        with self._changed:
            # In short turns: Python handles no signal while it waits for good.
            while self._busy or self._waiting:
                self._changed.wait(0.2)

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None:
                    self._changed.wait()
                saved, self._waiting, self._busy = self._waiting, None, True
            try:
                self._upload(saved)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _upload(self, saved: Saved) -> None:
        begun = time.monotonic()
        try:
            self._store.save(saved.folder, saved.step, self._check)
        except (TrainerError, OSError) as error:  # an earlier one is still there, and the next may succeed
            log.warning("checkpoint: the one of step %d could not be stored: %s", saved.step, error)
        else:
            report_checkpoint(self._progress, saved.step, now())
            log.info("checkpoint: step %d is stored, after %.1f s", saved.step, time.monotonic() - begun)
        finally:
            shutil.rmtree(saved.folder, ignore_errors=True)


def report_checkpoint(progress: ProgressReporter, step: int, time: str) -> None:
    """Report a checkpoint that is complete in the store, where it is asked for and where it outlasts a kill."""
    progress.update(last_checkpoint_step=step, last_checkpoint_time=time)
    termination_message.record_checkpoint(progress.latest())


@dataclass
class Saver:
    """Decides after each step whether to save, and takes over what was saved."""

    uploader: Uploader
    stop: StopRequest
    claim: Claim
    log: RunLog | None = None
    every_steps: int | None = None
    every_seconds: float = SECONDS
    clock: Callable[[], float] = time.monotonic
    _last: float = field(init=False)

    def __post_init__(self) -> None:
        self._last = self.clock()

    def due(self, step: int, total: int) -> bool:
        """Whether to save now. Raises `OUTPUT_BUSY` where nothing that is saved would count any more."""
        self.claim.check_known()
        if (
            self.stop.made or step >= total
        ):  # after the last, so that no attempt trains again what only was not published
            return True
        if self.every_steps:
            return step % self.every_steps == 0
        return self.clock() - self._last >= self.every_seconds

    def saved(self, saved: Saved) -> None:
        """Store it: in the background, or before the process stops if it was told to."""
        self._last = self.clock()
        if self.log:
            self.log.save(saved.folder)
        self.uploader.hand_over(saved)
        if self.stop.agreed:
            log.info("checkpoint: told to stop, storing step %d first", saved.step)
            self.uploader.finish()
            collectives.release()
            self.stop.obey()


@dataclass(frozen=True)
class Keeper:
    """Keeps a run's work from one attempt to the next."""

    store: CheckpointStore
    claim: Claim
    uploader: Uploader
    settings: Checkpoints

    @contextmanager
    def session(self, known: Known, folder: Path) -> Iterator[Session]:
        """A training that goes on from the newest checkpoint, saves more, and is told to stop only with one saved."""
        restored = self.store.newest(folder / RESTORED)
        if restored:
            report_checkpoint(known.progress, restored.step, restored.created_at)
            if known.log:
                known.log.restore(restored.folder)
        collectives.from_first(restored.step if restored else 0)
        collectives.wait(known.progress)
        with deferred(known) as stop:
            saver = Saver(self.uploader, stop, self.claim, known.log, self.settings.every_steps)
            before = restored.folder if restored else None
            yield Session(known.progress, resume_from=before, saver=saver, track=known.track)
            self.uploader.finish()  # before a stop takes effect, or anything else is begun

    def clear(self) -> None:
        """The result is published: nothing will go on from here. A rest that stays behind harms nobody."""
        self.uploader.finish()
        try:
            self.store.clear()
        except TrainerError as error:
            log.warning("checkpoint: some are left behind: %s", error.message)


def keeper(store: CheckpointStore, claim: Claim, known: Known, settings: Checkpoints) -> Keeper:
    """With its thread for uploads."""
    return Keeper(store, claim, Uploader(store, known.progress, claim.check), settings)
