"""Compares the trainer's loss with the model's own logits, before the first step. Imports TRL, so import this module
only after the backend.

Only a few rows, cut to a fixed number of tokens, go through the model; without gradients and dropout, and without
drawing a random number that the training would draw.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
import torch

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import Tokens, losses
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training.evaluation_callback import local_computation
from finetune_trainer.training.trl_methods import Sft

log = logging.getLogger(__name__)

ROWS = 4
"""Rows that are compared, at most."""
_TOKENS = 256
"""Of a row."""
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.05}
"""Relative to the loss, or absolute where that is below 1. Families that agree differ by up to 1e-7 in 32 bits and by
2e-4 in 16; where a scaling is missing, by 0.18 or more."""


@dataclass(frozen=True)
class LossCheck:
    """The check of one training's loss, in all of its workers at once."""

    trainer: Sft
    config: TrainerConfig
    rows: datasets.Dataset
    """As they were prepared, not packed."""
    collate: Callable[[Any], Any]
    """Makes a batch of such rows."""
    alive: Callable[[], None]

    def run(self) -> None:
        """Compare the trainer's loss with the cross-entropy of the model's logits; take `nll` where they differ.

        Raises `MODEL_INVALID` if no implementation computes the loss of the logits.
        """
        with evaluation_mode(self.trainer):
            reference = self._reference()
            loss = self._loss()
            if not self._agrees(loss, reference) and self.trainer.args.loss_type != "nll":
                log.warning(
                    "preflight: TRL's chunked loss is %.6g, the cross-entropy of the model's logits %.6g; the loss is "
                    "computed from all logits instead, which takes more memory",
                    loss,
                    reference,
                )
                self.trainer.use_full_logits()
                loss = self._loss()
            if not self._agrees(loss, reference):
                raise TrainerError(Reason.MODEL_INVALID, self._message(loss, reference))
        log.info("preflight: the trainer's loss is %.6g, the cross-entropy of the model's logits %.6g", loss, reference)

    def _parts(self) -> list[Tokens]:
        count = min(len(self.rows), self.config.training.batch_size, ROWS)
        return [learnt_part(self.rows[index], _TOKENS) for index in range(count)]

    def _reference(self) -> float:
        """Of each row alone, so that padding cannot change it."""
        found = [losses(self.trainer.model, [part], self.alive) for part in self._parts()]
        return math.fsum(each.sums[0] for each in found) / sum(each.tokens[0] for each in found)

    def _loss(self) -> float:
        """By the trainer's implementation, of the same rows in a padded batch."""
        batch = self.collate([{"input_ids": part.input_ids, "labels": part.labels} for part in self._parts()])
        loss = float(self.trainer.compute_loss(self.trainer.model, self.trainer._prepare_inputs(batch)))
        self.alive()
        return loss

    def _agrees(self, loss: float, reference: float) -> bool:
        """Whether they do in every worker. A model whose own loss is no number is left to the training's check."""
        allowed = tolerance(self.config, _TOLERANCE) * max(reference, 1.0)
        differs = math.isfinite(reference) and not abs(loss - reference) <= allowed
        return not collectives.any_of(differs)[0]

    def _message(self, loss: float, reference: float) -> str:
        kind = type(self.trainer.model.get_base_model()).__name__
        return (
            f"the trainer's loss for {kind} is {loss:.6g}, but the cross-entropy of the model's own logits is "
            f"{reference:.6g}: the training would minimise something else than the model's loss; try another "
            "training.backend, or take a base model of another architecture"
        )


@contextmanager
def evaluation_mode(trainer: Sft) -> Iterator[None]:
    """Without dropout and gradients, in the training's precision, the generators of random numbers as before."""
    model = trainer.model
    training = model.training
    model.eval()
    try:
        precision = trainer.compute_loss_context_manager()
        with torch.random.fork_rng(), torch.no_grad(), local_computation(trainer), precision:
            yield
    finally:
        model.train(training)
        trainer._metrics["eval"].clear()


def tolerance(config: TrainerConfig, tolerances: Mapping[str, float]) -> float:
    """That of the run's precision. bitsandbytes' `int8` rounds a row by what else is in its batch."""
    return tolerances["int8" if config.model.quantization == "int8" else resolve_precision(config)]


def learnt_part(row: Mapping[str, Any], most: int) -> Tokens:
    """At most so many tokens of a row, up to the last that is learnt."""
    ids, labels = row["input_ids"], row["labels"]
    end = max(index for index, label in enumerate(labels) if label != IGNORED) + 1
    start = max(0, end - most)
    return Tokens(ids[start:end], [IGNORED, *labels[start + 1 : end]])
