"""Saves checkpoints during training. Imports transformers, so import this module only after the backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.checkpoints.manager import CheckpointFolder, CheckpointSaver
from finetune_trainer.distributed import collectives, topology


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Requests a checkpoint when one is due, and passes it to the saver once it is on disk. All ranks save at the same
    step.

    The steps of checkpoints are those of the run: `steps_before` is the number of steps of its earlier trainings.
    """

    def __init__(self, saver: CheckpointSaver, steps_before: int = 0) -> None:
        self._saver, self._steps_before = saver, steps_before

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        is_due = self._saver.is_due(state.global_step, state.max_steps)
        is_due, shutdown_requested = collectives.all_reduce_any(is_due, self._saver.shutdown.requested)
        if shutdown_requested:
            self._saver.shutdown.broadcast()
        # Also if training stops early, so that the next attempt publishes without training again.
        if is_due or control.should_training_stop or (shutdown_requested and state.global_step < state.max_steps):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _gather_rng_states(folder)
        self._saver.handle_saved(CheckpointFolder(folder, self._steps_before + state.global_step))


def _gather_rng_states(folder: Path) -> None:
    """Write the random states of all ranks into the folder of rank 0."""
    if topology.world_size() == 1:
        return
    local_file = folder / f"rng_state_{topology.rank()}.pth"
    states = collectives.all_gather_bytes(local_file.read_bytes())
    if topology.is_rank_zero():
        for rank, content in enumerate(states):
            (folder / f"rng_state_{rank}.pth").write_bytes(content)
