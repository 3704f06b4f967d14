"""Ties checkpoints to transformers' training loop. Import it only after the backend, since it imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.checkpoints.follower import Following
from finetune_trainer.checkpoints.manager import Saved, Saver
from finetune_trainer.distributed import collectives, topology


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Asks for a checkpoint when one is due, and hands it on once it is on disk. All workers do so at the same step.

    Steps are counted from the run's first: `before` are those of its trainings before this one.
    """

    def __init__(self, saver: Saver | Following, before: int = 0) -> None:
        self._saver, self._before = saver, before

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        due = self._saver.due(state.global_step, state.max_steps)
        due, stop = collectives.any_of(due, self._saver.stop.made)
        if stop:
            self._saver.stop.share()
        # Also where training ends before its last step, so that no attempt trains again what only was not published.
        if due or control.should_training_stop or (stop and state.global_step < state.max_steps):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _bring_together(folder)
        self._saver.saved(Saved(folder, self._before + state.global_step))


def _bring_together(folder: Path) -> None:
    """The states of all workers' random numbers into the first one's folder."""
    if topology.size() == 1:
        return
    mine = folder / f"rng_state_{topology.rank()}.pth"
    states = collectives.gathered(mine.read_bytes())
    if topology.is_first():
        for rank, content in enumerate(states):
            (folder / f"rng_state_{rank}.pth").write_bytes(content)
