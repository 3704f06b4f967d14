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
from typing import TYPE_CHECKING, Any

import datasets
import torch

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses
from finetune_trainer.modeling.precision import resolve_precision
from finetune_trainer.training.evaluation_callback import disable_gather

if TYPE_CHECKING:
    from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

MAX_ROWS = 4
"""Rows that are compared, at most."""
_MAX_TOKENS_PER_ROW = 256
"""Of a row."""
_LOSS_TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.05}
"""Relative to the loss, or absolute where that is below 1. Families that agree differ by up to 1e-7 in 32 bits and by
2e-4 in 16; where a scaling is missing, by 0.18 or more."""


@dataclass(frozen=True)
class LossCheck:
    """The check of one training's loss, in all of its workers at once."""

    trainer: TokenizedSFTTrainer
    config: TrainerConfig
    rows: datasets.Dataset
    """As they were prepared, not packed."""
    collator: Callable[[Any], Any]
    """Makes a batch of such rows."""
    heartbeat: Callable[[], None]

    def run(self) -> None:
        """Compare the trainer's loss with the cross-entropy of the model's logits; take `nll` where they differ.

        Raises `MODEL_INVALID` if no implementation computes the loss of the logits.
        """
        with evaluation_mode(self.trainer):
            reference_loss = self._compute_reference_loss()
            trainer_loss = self._compute_trainer_loss()
            if not self._is_within_tolerance(trainer_loss, reference_loss) and self.trainer.args.loss_type != "nll":
                log.warning(
                    "preflight: TRL's chunked loss is %.6g, the cross-entropy of the model's logits %.6g; the loss is "
                    "computed from all logits instead, which takes more memory",
                    trainer_loss,
                    reference_loss,
                )
                self.trainer.use_full_logits()
                trainer_loss = self._compute_trainer_loss()
            if not self._is_within_tolerance(trainer_loss, reference_loss):
                raise TrainerError(Reason.MODEL_INVALID, self._build_error_message(trainer_loss, reference_loss))
        log.info(
            "preflight: the trainer's loss is %.6g, the cross-entropy of the model's logits %.6g",
            trainer_loss,
            reference_loss,
        )

    def _truncate_rows(self) -> list[LabeledTokens]:
        row_count = min(len(self.rows), self.config.training.batch_size, MAX_ROWS)
        return [truncate_to_supervised(self.rows[index], _MAX_TOKENS_PER_ROW) for index in range(row_count)]

    def _compute_reference_loss(self) -> float:
        """Of each row alone, so that padding cannot change it."""
        row_losses = [compute_losses(self.trainer.model, [row], self.heartbeat) for row in self._truncate_rows()]
        return math.fsum(row_loss.sums[0] for row_loss in row_losses) / sum(each.token_counts[0] for each in row_losses)

    def _compute_trainer_loss(self) -> float:
        """By the trainer's implementation, of the same rows in a padded batch."""
        batch = self.collator([{"input_ids": row.input_ids, "labels": row.labels} for row in self._truncate_rows()])
        loss = float(self.trainer.compute_loss(self.trainer.model, self.trainer._prepare_inputs(batch)))
        self.heartbeat()
        return loss

    def _is_within_tolerance(self, trainer_loss: float, reference_loss: float) -> bool:
        """Whether they do in every worker. A model whose own loss is no number is left to the training's check."""
        max_difference = select_tolerance(self.config, _LOSS_TOLERANCES) * max(reference_loss, 1.0)
        is_different = math.isfinite(reference_loss) and not abs(trainer_loss - reference_loss) <= max_difference
        return not collectives.all_reduce_any(is_different)[0]

    def _build_error_message(self, trainer_loss: float, reference_loss: float) -> str:
        model_class = type(self.trainer.model.get_base_model()).__name__
        return (
            f"the trainer's loss for {model_class} is {trainer_loss:.6g}, but the cross-entropy of the model's "
            "own logits is "
            f"{reference_loss:.6g}: the training would minimise something else than the model's loss; try another "
            "training.backend, or take a base model of another architecture"
        )


@contextmanager
def evaluation_mode(trainer: TokenizedTrainer) -> Iterator[None]:
    """Without dropout and gradients, in the training's precision, the generators of random numbers as before."""
    model = trainer.model
    was_training = model.training
    model.eval()
    try:
        autocast = trainer.compute_loss_context_manager()
        with torch.random.fork_rng(), torch.no_grad(), disable_gather(trainer), autocast:
            yield
    finally:
        model.train(was_training)
        trainer._metrics["eval"].clear()


def select_tolerance(config: TrainerConfig, tolerances: Mapping[str, float]) -> float:
    """That of the run's precision. bitsandbytes' `int8` rounds a row by what else is in its batch."""
    return tolerances["int8" if config.model.quantization == "int8" else resolve_precision(config)]


def truncate_to_supervised(row: Mapping[str, Any], max_tokens: int) -> LabeledTokens:
    """At most so many tokens of a row, up to the last that is learnt."""
    input_ids, labels = row["input_ids"], row["labels"]
    end = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    start = max(0, end - max_tokens)
    return LabeledTokens(input_ids[start:end], [IGNORE_INDEX, *labels[start + 1 : end]])
