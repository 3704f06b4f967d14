"""What all workers but the first do for checkpoints: they save when it does, and go on from what it goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.checkpoints.manager import RESTORED_DIR, CheckpointFolder
from finetune_trainer.checkpoints.store import CheckpointStore
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.telemetry.shutdown import GracefulShutdown, defer_signals
from finetune_trainer.telemetry.termination_message import RunContext
from finetune_trainer.training.state import TrainingSession


@dataclass
class NonPrimarySaver:
    """A saver that leaves it to the first worker."""

    shutdown: GracefulShutdown

    def is_due(self, _: int, __: int) -> bool:
        """The first worker decides."""
        return False

    def handle_saved(self, checkpoint: CheckpointFolder) -> None:
        """Nobody needs what another node wrote; whoever was told to stop lets the first worker store its state."""
        if topology.is_local_rank_zero():
            shutil.rmtree(checkpoint.folder, ignore_errors=True)
        if self.shutdown.agreed_by_all:
            collectives.barrier()
            self.shutdown.deliver()


@dataclass(frozen=True)
class NonPrimaryCheckpointManager:
    """In place of the first worker's `Keeper`."""

    store: CheckpointStore

    @contextmanager
    def open_session(self, context: RunContext, folder: Path) -> Iterator[TrainingSession]:
        """A training that goes on from the checkpoint that the first worker chose."""
        step = collectives.broadcast(0)
        if step and topology.is_local_rank_zero():
            self.store.fetch(step, folder / RESTORED_DIR)
        collectives.barrier(context.progress)
        with defer_signals(context) as shutdown:
            resume_from = folder / RESTORED_DIR / f"checkpoint-{step}" if step else None
            yield TrainingSession(context.progress, resume_from=resume_from, saver=NonPrimarySaver(shutdown))
