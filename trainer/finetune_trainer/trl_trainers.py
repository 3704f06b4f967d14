"""Builds and runs TRL's trainers. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from finetune_trainer import trl_arguments
from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data import PreparedData
from finetune_trainer.labels import IGNORED
from finetune_trainer.model import Loaded
from finetune_trainer.train import Session, Step, Watch

_COUNTS = "token_counts.json"
"""Beside the trainer's own state in a checkpoint: what was trained before it."""


@dataclass(frozen=True)
class Result:
    """What was trained: mean loss over all steps, tokens without padding (`fresh`: by this attempt), peak bytes of GPU
    memory if there is one."""

    mean_loss: float
    tokens: int
    fresh: int
    supervised: int
    peak_memory: int | None


@dataclass(frozen=True)
class Job:
    """What a trainer is built from."""

    config: TrainerConfig
    loaded: Loaded
    prepared: PreparedData
    work_dir: Path


def run(job: Job, session: Session, watch: Watch) -> Result:
    """Train on the rows as they are: nothing is dropped, cut or masked here."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    trainer = build(job)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_Reporter(watch, trainer))
    for callback in session.callbacks:
        trainer.add_callback(callback)
    resume = session.resume_from
    if resume is not None:
        trainer.restore_counts(resume)
    earlier = trainer.tokens()
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    peak = torch.cuda.max_memory_reserved() if gpu else None
    return Result(_mean_loss(trainer.state), trainer.tokens(), trainer.tokens() - earlier, trainer.supervised(), peak)


def _mean_loss(state: TrainerState) -> float:
    """Over all steps: the trainer's own mean leaves out those before the checkpoint that it went on from."""
    losses = [float(each["loss"]) for each in state.log_history if "loss" in each]
    return math.fsum(losses) / max(len(losses), 1)


def build(job: Job) -> _Sft:
    """The method's trainer."""
    rows = job.prepared.dataset
    return _Sft(
        model=job.loaded.model,
        args=trl_arguments.sft(job.config, job.loaded.backend, len(rows), job.work_dir),
        train_dataset=rows,
        processing_class=job.loaded.tokenizer,
    )


class _Sft(SFTTrainer):  # type: ignore[misc]  # TRL is published without types
    """Counts what goes through it: TRL's own count knows nothing of labels and starts anew after a checkpoint."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._supervised = torch.zeros_like(self._tokens)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], *args: Any) -> torch.Tensor:
        # Sums stay on the device until somebody asks, so that counting does not make the GPU wait.
        self._tokens += inputs["attention_mask"].sum().to(self._tokens.device)
        self._supervised += (inputs["labels"] != IGNORED).sum().to(self._tokens.device)
        loss: torch.Tensor = super().training_step(model, inputs, *args)
        return loss

    def tokens(self) -> int:
        """Trained so far, without padding."""
        return int(self._tokens.item())

    def supervised(self) -> int:
        """Learnt so far."""
        return int(self._supervised.item())

    def save_counts(self, checkpoint: Path) -> None:
        """Beside the rest of the checkpoint."""
        (checkpoint / _COUNTS).write_text(json.dumps([self.tokens(), self.supervised()]), encoding="utf-8")

    def restore_counts(self, checkpoint: Path) -> None:
        """Go on counting where the checkpoint was saved."""
        tokens, supervised = json.loads((checkpoint / _COUNTS).read_text(encoding="utf-8"))
        self._tokens += tokens
        self._supervised += supervised


class _Reporter(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Hands each step to the watch."""

    def __init__(self, watch: Watch, trainer: _Sft) -> None:
        self._watch = watch
        self._trainer = trainer

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        self._watch.begin(state.max_steps, state.global_step, self._trainer.tokens())

    def on_log(
        self, _: TrainingArguments, state: TrainerState, __: TrainerControl, logs: dict[str, float], **___: Any
    ) -> None:
        if "loss" in logs:
            tokens = self._trainer.tokens()
            self._watch.step(Step(state.global_step, state.max_steps, state.epoch or 0.0, tokens, logs))

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        self._trainer.save_counts(Path(args.output_dir) / f"checkpoint-{state.global_step}")
