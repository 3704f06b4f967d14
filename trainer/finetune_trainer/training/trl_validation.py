"""Looks at rows that are not trained on. Imports TRL, so import this module only after the backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import datasets
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune_trainer.data.labels import IGNORED
from finetune_trainer.training.train import Watch
from finetune_trainer.training.trl_methods import Dpo, Kto, Sft
from finetune_trainer.workers import group, layout


@dataclass
class Validation:
    """Rows to look at, and what was seen last."""

    trainer: Sft | Dpo | Kto
    rows: datasets.Dataset
    collate: Callable[[Any], Any]
    metrics: dict[str, float] = field(default_factory=dict)
    _own: int = 0

    def look(self) -> float:
        """The mean loss, over learnt tokens for `sft` and over rows for the others; without dropout."""
        model, trainer = self.trainer.model, self.trainer
        model.eval()
        # A loader draws from the generator that dropout draws from; looking must not change the training.
        with torch.random.fork_rng(devices=[]):
            weighed = [self._batch(inputs) for inputs in self._loader()]
        model.train()
        seen = trainer._metrics["eval"].pop("rewards/accuracies", [])
        trainer._metrics["eval"].clear()
        sums = torch.tensor(weighed[: self._own], dtype=torch.float64).reshape(-1, 2)
        weight = group.total(sums[:, 1].sum()).item()
        loss = group.total(sums.prod(1).sum()).item() / weight if weight else math.nan
        self.metrics = {"evalLoss": loss}
        if seen:
            self.metrics["evalRewardAccuracy"] = sum(seen) / len(seen)
        return loss

    def _loader(self) -> torch.utils.data.DataLoader[Any]:
        """This worker's share of the batches. All take as many, since TRL has them wait for each other in each."""
        batches = self._batches()
        own = batches[layout.rank() :: layout.size()]
        self._own = len(own)
        spare = [batches[0]] * (math.ceil(len(batches) / layout.size()) - len(own))
        return torch.utils.data.DataLoader(self.rows, batch_sampler=[*own, *spare], collate_fn=self.collate)

    def _batches(self) -> list[list[int]]:
        """Rows in their order. `kto` compares the rows of a batch with each other, so it gets pairs whatever the batch
        size is, and three at the end where one would be left over: its loss would depend on the batches otherwise."""
        count, pairs = len(self.rows), isinstance(self.trainer, Kto)
        size = 2 if pairs else self.trainer.args.per_device_train_batch_size
        starts = list(range(0, count, size))
        if pairs and count % 2 and count > 1:
            del starts[-1]
        return [list(range(start, end)) for start, end in zip(starts, [*starts[1:], count], strict=True)]

    def _batch(self, inputs: dict[str, torch.Tensor]) -> tuple[float, int]:
        weight = len(inputs["input_ids"])
        if "labels" in inputs:
            weight = int((inputs["labels"][:, 1:] != IGNORED).sum())
        inputs = self.trainer._prepare_inputs(inputs)
        with torch.no_grad(), self.trainer.compute_loss_context_manager():
            return float(self.trainer.compute_loss(self.trainer.model, inputs)), weight


class Lookout(TrainerCallback):  # type: ignore[misc]  # transformers' types are not followed
    """Looks before the first step, at each epoch's end or every `every` steps, and at the end."""

    def __init__(self, validation: Validation, watch: Watch, every: int | None) -> None:
        self._validation, self._watch, self._every = validation, watch, every
        self._seen_at = -1

    def on_train_begin(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if state.global_step == 0:
            self._validation.trainer.counts.base_eval_loss = self._look(state)

    def on_step_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if self._every and state.global_step % self._every == 0:
            self._look(state)

    def on_epoch_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if not self._every:
            self._look(state)

    def on_train_end(self, _: TrainingArguments, state: TrainerState, __: TrainerControl, **___: Any) -> None:
        if self._seen_at != state.global_step:
            self._look(state)

    def _look(self, state: TrainerState) -> float:
        self._seen_at = state.global_step
        loss = self._validation.look()
        self._watch.evaluated(state.global_step, loss)
        return loss
