"""Compares the trainer's loss with the cross-entropy of the model's logits before the first step.

A few truncated rows pass through the model, without gradients and dropout. The states of random generators do not
change. Imports torch, so import this module only after the backend.
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
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.tokenized_trainer import disable_gather

if TYPE_CHECKING:
    from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer
    from finetune_trainer.training.tokenized_trainer import TokenizedTrainer

log = logging.getLogger(__name__)

MAX_ROWS = 4
"""Maximum number of rows that are compared."""
_MAX_TOKENS_PER_ROW = 256
_LOSS_TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.05}
"""By precision: relative to the loss, or absolute if the loss is below 1. Correct implementations differ by up to 1e-7
in 32 bits and by 2e-4 in 16 bits; a missing scaling factor causes 0.18 or more."""


@dataclass(frozen=True)
class LossCheck:
    """Checks the loss of a training. All ranks must run it."""

    trainer: TokenizedSFTTrainer
    config: TrainerConfig
    rows: datasets.Dataset
    """The prepared rows, not packed."""
    collator: Callable[[Any], Any]
    """Makes a batch of prepared rows."""
    heartbeat: Callable[[], None]

    def run(self) -> PreflightFinding:
        """Compare the trainer's loss with the cross-entropy of the model's logits, and use `nll` if they differ.

        Raises `MODEL_UNSUPPORTED` if no implementation computes the loss of the logits.
        """
        with evaluation_mode(self.trainer):
            reference_loss = self._compute_reference_loss()
            trainer_loss = self._compute_trainer_loss()
            if not self._is_within_tolerance(trainer_loss, reference_loss) and self.trainer.args.loss_type != "nll":
                log.warning(
                    "preflight: TRL's chunked loss is %.6g, but the cross-entropy of the model's logits is %.6g; the "
                    "loss is computed from all logits instead, which needs more memory",
                    trainer_loss,
                    reference_loss,
                )
                self.trainer.use_full_logits()
                trainer_loss = self._compute_trainer_loss()
            if not self._is_within_tolerance(trainer_loss, reference_loss):
                raise TrainerError(Reason.MODEL_UNSUPPORTED, self._build_error_message(trainer_loss, reference_loss))
        return PreflightFinding(
            check="loss",
            status="passed",
            message=f"the trainer's loss is {trainer_loss:.6g}, the cross-entropy of the model's logits "
            f"{reference_loss:.6g}",
            value=trainer_loss,
            expected=reference_loss,
        )

    def _truncate_rows(self) -> list[LabeledTokens]:
        row_count = min(len(self.rows), self.config.training.batch_size, MAX_ROWS)
        return [truncate_to_supervised(self.rows[index], _MAX_TOKENS_PER_ROW) for index in range(row_count)]

    def _compute_reference_loss(self) -> float:
        """Return the mean loss per token. Each row is computed on its own, so that padding cannot affect it."""
        row_losses = [compute_losses(self.trainer.model, [row], self.heartbeat) for row in self._truncate_rows()]
        return math.fsum(row_loss.sums[0] for row_loss in row_losses) / sum(
            row_loss.token_counts[0] for row_loss in row_losses
        )

    def _compute_trainer_loss(self) -> float:
        """Return the trainer's loss of the same rows in a padded batch."""
        batch = self.collator([{"input_ids": row.input_ids, "labels": row.labels} for row in self._truncate_rows()])
        loss = float(self.trainer.compute_loss(self.trainer.model, self.trainer._prepare_inputs(batch)))
        self.heartbeat()
        return loss

    def _is_within_tolerance(self, trainer_loss: float, reference_loss: float) -> bool:
        """Return whether the losses match in all ranks. The training itself handles a non-finite reference loss."""
        max_difference = select_tolerance(self.config, _LOSS_TOLERANCES) * max(reference_loss, 1.0)
        is_different = math.isfinite(reference_loss) and not abs(trainer_loss - reference_loss) <= max_difference
        return not collectives.all_reduce_any(is_different)[0]

    def _build_error_message(self, trainer_loss: float, reference_loss: float) -> str:
        model_class = type(self.trainer.model.get_base_model()).__name__
        return (
            f"the trainer's loss for {model_class} is {trainer_loss:.6g}, but the cross-entropy of the model's "
            "own logits is "
            f"{reference_loss:.6g}, so the training would not minimize the loss of the model; use another "
            "training.backend, or a base model of another architecture"
        )


@contextmanager
def evaluation_mode(trainer: TokenizedTrainer) -> Iterator[None]:
    """Disable dropout and gradients, use the precision of the training, and restore the random generators."""
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
    """Return the tolerance for the precision of the run. `int8` of bitsandbytes rounds a row depending on its batch."""
    return tolerances["int8" if config.model.quantization == "int8" else resolve_precision(config)]


def truncate_to_supervised(row: Mapping[str, Any], max_tokens: int) -> LabeledTokens:
    """Return at most `max_tokens` tokens of a row, up to the last supervised one."""
    input_ids, labels = row["input_ids"], row["labels"]
    end = max(index for index, label in enumerate(labels) if label != IGNORE_INDEX) + 1
    start = max(0, end - max_tokens)
    return LabeledTokens(input_ids[start:end], [IGNORE_INDEX, *labels[start + 1 : end]])
