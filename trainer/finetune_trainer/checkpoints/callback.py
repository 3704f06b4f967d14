"""Ties checkpoints to transformers' training loop. Import it only after the backend, since it imports transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.checkpoints.saving import Saved, Saver


class CheckpointCallback(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Asks for a checkpoint when one is due, and hands it on once it is on disk."""

    def __init__(self, saver: Saver) -> None:
        self._saver = saver

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        if self._saver.due(state.global_step, state.max_steps):
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._saver.saved(Saved(folder, state.global_step))
