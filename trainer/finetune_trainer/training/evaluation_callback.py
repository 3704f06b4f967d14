"""Looks at rows that are not trained on. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.contract import Training
from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.training import early_stopping
from finetune_trainer.training.adapter_snapshot import AdapterCopy
from finetune_trainer.training.early_stopping import Look
from finetune_trainer.training.monitor import Watch
from finetune_trainer.training.trl_methods import Dpo, Kto, Sft

log = logging.getLogger(__name__)


@dataclass
class Validation:
    """Rows to look at."""

    trainer: Sft | Dpo | Kto
    rows: datasets.Dataset
    collate: Callable[[Any], Any]
    alive: Callable[[], None]
    """Called after each batch."""

    def look(self) -> dict[str, float]:
        """`evalLoss`, the mean over learnt tokens for `sft` and over rows for the others, without dropout; of `dpo`
        also `evalRewardAccuracy`."""
        model, trainer = self.trainer.model, self.trainer
        model.eval()
        # A loader draws from the generator that dropout draws from; looking must not change the training.
        with torch.random.fork_rng(devices=[]), local_computation(trainer):
            seen = [self._batch(inputs) for inputs in self._loader()]
        model.train()
        trainer._metrics["eval"].clear()
        sums = torch.tensor(seen, dtype=torch.float64).reshape(-1, 3)
        weight, loss, right = collectives.total(sums.sum(0)).tolist()
        mean = {"evalLoss": loss / weight if weight else math.nan}
        return mean | ({"evalRewardAccuracy": right / weight} if isinstance(trainer, Dpo) and weight else {})

    def loss(self) -> float:
        """`evalLoss` alone."""
        return self.look()["evalLoss"]

    def _loader(self) -> torch.utils.data.DataLoader[Any]:
        """This worker's share of the batches."""
        own = self._batches()[topology.rank() :: topology.size()]
        return torch.utils.data.DataLoader(self.rows, batch_sampler=own, collate_fn=self.collate)

    def _batches(self) -> list[list[int]]:
        """Rows in their order. `kto` compares the rows of a batch with each other, so it gets pairs whatever the batch
        size is, and three at the end where one would be left over: its loss would depend on the batches otherwise."""
        count, pairs = len(self.rows), isinstance(self.trainer, Kto)
        size = 2 if pairs else self.trainer.args.per_device_train_batch_size
        starts = list(range(0, count, size))
        if pairs and count % 2 and count > 1:
            del starts[-1]
        return [list(range(start, end)) for start, end in zip(starts, [*starts[1:], count], strict=True)]

    def _batch(self, inputs: dict[str, torch.Tensor]) -> tuple[int, float, float]:
        """What it weighs, and, each times that weight, its loss and the share of rows whose right answer is preferred.

        In a batch of `dpo` there are two answers to each row.
        """
        weight = len(inputs["input_ids"])
        if "labels" in inputs:
            weight = int((inputs["labels"][:, 1:] != IGNORED).sum())
        inputs = self.trainer._prepare_inputs(inputs)
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            loss = float(self.trainer.compute_loss(self.trainer.model, inputs))
        self.alive()
        preferred = self.trainer._metrics["eval"].get("rewards/accuracies", [0.0])[-1]
        return weight, loss * weight, preferred * weight


@contextmanager
def local_computation(trainer: Sft | Dpo | Kto) -> Iterator[None]:
    """Has TRL exchange nothing with other workers while it computes a loss.

    It would gather numbers of each row for metrics, which takes batches of one size in all workers, and for `kto` a
    mean that the loss depends on: the same rows would have another loss where more workers look at them.
    """
    accelerator = trainer.accelerator
    accelerator.gather = accelerator.gather_for_metrics = lambda own: own
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


class Lookout(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Looks before the first step, at each epoch's end or every `evalSteps` steps, and at the end; with
    `earlyStopping` it keeps the best adapter, and ends the training when no better one comes.

    It acts at a step's end alone, before a checkpoint of that step is saved, so that no look is missing in it.
    """

    def __init__(self, validation: Validation, watch: Watch, training: Training) -> None:
        self._validation, self._watch, self._training = validation, watch, training
        self._best = AdapterCopy(validation.trainer.model) if training.early_stopping else None

    @property
    def looks(self) -> list[Look]:
        """All so far, of earlier attempts too."""
        return self._validation.trainer.counts.looks

    @property
    def is_over(self) -> bool:
        """Whether no lower loss is to be waited for any more."""
        return early_stopping.is_over(self.looks, self._training.early_stopping)

    def restore(self, checkpoint: Path) -> None:
        """Go on from there, after the looks themselves were restored."""
        if self._best:
            self._best.restore(checkpoint)

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if state.global_step == 0:
            self._look(state)

    def on_step_end(self, _: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any) -> None:
        every, epoch = self._training.eval_steps, state.epoch or 0.0
        due = state.global_step % every == 0 if every else math.isclose(epoch, round(epoch), abs_tol=1e-6)
        if due or state.global_step >= state.max_steps:
            self._look(state)
            control.should_training_stop |= self.is_over

    def on_save(self, args: TrainingArguments, state: TrainerState, _: TrainerControl, **__: Any) -> None:
        if self._best:
            self._best.save(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if not self.looks or self.looks[-1].step != state.global_step:
            self._look(state)
        lowest = early_stopping.best(self.looks)
        if self._best and lowest:
            log.info("the adapter of step %d has the lowest validation loss and is taken", lowest.step)
            self._best.put_back()

    def _look(self, state: TrainerState) -> None:
        look = Look(state.global_step, self._validation.look())
        self.looks.append(look)
        self._watch.evaluated(look.step, look.loss)
        if self._best and early_stopping.best(self.looks) is look:
            self._best.keep()
