"""What all workers but the first do for checkpoints: they save when it does, and go on from what it goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.checkpoints.manager import RESTORED, Saved
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.telemetry.shutdown import StopRequest, deferred
from finetune_trainer.telemetry.termination_message import Known
from finetune_trainer.training.train import Session


@dataclass
class Following:
    """A saver that leaves it to the first worker."""

    stop: StopRequest

    def due(self, _: int, __: int) -> bool:
        """The first worker decides."""
        return False

    def saved(self, saved: Saved) -> None:
        """Nobody needs what another node wrote; whoever was told to stop lets the first worker store its state."""
        if topology.leads_node():
            shutil.rmtree(saved.folder, ignore_errors=True)
        if self.stop.agreed:
            collectives.wait()
            self.stop.obey()


@dataclass(frozen=True)
class Follower:
    """In place of the first worker's `Keeper`."""

    store: CheckpointStore

    @contextmanager
    def session(self, known: Known, folder: Path) -> Iterator[Session]:
        """A training that goes on from the checkpoint that the first worker chose."""
        step = collectives.from_first(0)
        if step and topology.leads_node():
            self.store.fetch(step, folder / RESTORED)
        collectives.wait(known.progress)
        with deferred(known) as stop:
            restored = folder / RESTORED / f"checkpoint-{step}" if step else None
            yield Session(known.progress, resume_from=restored, saver=Following(stop))
