"""Compares the trainer's loss with the cross-entropy of the model's logits before the first step.

Imports torch, so import this module only after the backend.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import cast

from finetune_trainer.contract import Reason
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import RowLosses, compute_losses
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer
from finetune_trainer.training.preflight.findings import build_comparison
from finetune_trainer.training.preflight.sample import Sample, select_tolerance
from finetune_trainer.training.steps import advise_accumulation

log = logging.getLogger(__name__)

LOSS_TOLERANCES = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.05, "int8": 0.05}
"""By precision: relative to the loss, or absolute if the loss is below 1. Correct implementations differ by up to 1e-7
in 32 bits and by 2e-4 in 16 bits; a missing scaling factor causes 0.18 or more."""


@dataclass(frozen=True)
class LossCheck:
    """Checks the loss of an `sft` training, in evaluation mode. All ranks must run it."""

    sample: Sample

    def run(self) -> list[PreflightFinding]:
        """Compare the trainer's loss with the cross-entropy of the model's logits, and use `nll` if they differ. Then
        compare the loss of a padded batch with that of its rows.

        Raises `MODEL_UNSUPPORTED` if no implementation computes the loss of the logits, or if padding changes it.
        """
        reference = self._compute_reference_losses()
        if collectives.all_reduce_any(not math.isfinite(reference.mean))[0]:
            return []  # the training itself handles a loss that is not finite
        trainer_loss = self._try_trainer_loss(reference)
        if not self._is_within_tolerance(trainer_loss, reference.mean):
            trainer_loss = self._replace_loss(trainer_loss, reference)
        reference_name = "the cross-entropy of the model's logits"
        finding = build_comparison("loss", "the trainer's loss", trainer_loss, reference_name, reference.mean)
        return [finding, *self._check_padding(reference.mean)]

    def _compute_reference_losses(self) -> RowLosses:
        """Return the losses of the rows. Each row is computed on its own, so that padding cannot affect it."""
        with self.sample.translate_errors("logits"):
            losses = [
                compute_losses(self.sample.trainer.model, [row], self.sample.heartbeat)
                for row in self.sample.labeled_rows
            ]
        return RowLosses([loss.sums[0] for loss in losses], [loss.token_counts[0] for loss in losses])

    def _try_trainer_loss(self, reference: RowLosses) -> float:
        """Return the trainer's loss, or NaN if TRL's chunked loss fails: it does not find the decoder of Llama 4."""
        try:
            return self._compute_trainer_loss(reference)
        except TrainerError as error:
            if self.sample.trainer.args.loss_type == "nll":
                raise
            log.warning("preflight: TRL's chunked loss cannot be computed: %s", error.__cause__)
            return math.nan

    def _compute_trainer_loss(self, reference: RowLosses) -> float:
        """Return the trainer's mean loss per token of the rows, each as a batch of its own."""
        counts = zip(self.sample.rows, reference.token_counts, strict=True)
        losses = [self.sample.compute_loss([row]) * count for row, count in counts if count]
        return math.fsum(losses) / max(sum(reference.token_counts), 1)

    def _replace_loss(self, trainer_loss: float, reference: RowLosses) -> float:
        """Compute the loss from all logits and return it, or raise if it is that already or does not match either."""
        trainer = cast("TokenizedSFTTrainer", self.sample.trainer)
        if trainer.args.loss_type != "nll":
            log.warning(
                "preflight: TRL's chunked loss is %.6g, but the cross-entropy of the model's logits is %.6g; the "
                "loss is computed from all logits instead, which needs more memory",
                trainer_loss,
                reference.mean,
            )
            trainer.use_full_logits()
            trainer_loss = self._compute_trainer_loss(reference)
            if self._is_within_tolerance(trainer_loss, reference.mean):
                return trainer_loss
        advice = "use another training.backend, or a base model of another architecture"
        if self.sample.config.training.kernels == "liger":
            advice = "set training.kernels to standard"
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"the trainer's loss for {self.sample.model_class} is {trainer_loss:.6g}, but the cross-entropy of the "
            f"model's own logits is {reference.mean:.6g}, so the training would not minimize the loss of the model; "
            + advice,
        )

    def _check_padding(self, reference_loss: float) -> list[PreflightFinding]:
        """Compare the loss of a padded batch with that of the rows alone. Without padding there is nothing to check."""
        if self.sample.config.training.batch_size == 1 or len(self.sample.rows) == 1:
            return []
        loss = self.sample.compute_loss(self.sample.rows)
        if not self._is_within_tolerance(loss, reference_loss):
            raise TrainerError(
                Reason.CONFIG_INVALID,
                f"training.batchSize: padding changes the loss of {self.sample.model_class}: it is {loss:.6g} for "
                f"{len(self.sample.rows)} rows in a padded batch and {reference_loss:.6g} for the same rows alone; set "
                f"training.batchSize to 1{advise_accumulation(self.sample.config.training)}",
            )
        return [
            build_comparison("padding", "the loss of a padded batch", loss, "that of its rows alone", reference_loss)
        ]

    def _is_within_tolerance(self, loss: float, reference_loss: float) -> bool:
        """Return whether the losses match in all ranks."""
        max_difference = select_tolerance(self.sample.config, LOSS_TOLERANCES) * max(reference_loss, 1.0)
        is_different = not abs(loss - reference_loss) <= max_difference
        return not collectives.all_reduce_any(is_different)[0]
