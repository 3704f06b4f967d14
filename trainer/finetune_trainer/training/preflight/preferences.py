"""Compares the loss of `dpo` and `kto` with an independent computation from the model's logits before the first step.

A new adapter does not change the model, so the loss is a constant: ln 2 for `dpo`, 0.5 for `kto`. The log-probabilities
of the answers are therefore compared too. Imports torch and TRL, so import this module only after the backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from trl.trainer.utils import use_adapter

from finetune_trainer.contract import Reason
from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import LabeledTokens, compute_losses
from finetune_trainer.records.evaluation import PreflightFinding
from finetune_trainer.training.preflight.findings import build_comparison
from finetune_trainer.training.preflight.loss import LOSS_TOLERANCES
from finetune_trainer.training.preflight.sample import Sample, select_tolerance
from finetune_trainer.training.reference_adapter import REFERENCE_ADAPTER

_NOISE_TOLERANCES = {"fp32": 1e-4, "bf16": 5e-3, "fp16": 5e-3, "int8": 5e-3}
"""Difference of a loss, and of a log-probability relative to it, between training and evaluation mode. Without noise
both compute the same numbers."""
_ANSWER_KINDS = ("chosen", "rejected")


@dataclass(frozen=True)
class _LogProbs:
    """The summed log-probabilities of answers in nats, under the model and under the reference model."""

    policy: list[float]
    reference: list[float]

    @property
    def log_ratios(self) -> list[float]:
        return [policy - reference for policy, reference in zip(self.policy, self.reference, strict=True)]


@dataclass(frozen=True)
class _Expectation:
    """What the trainer must compute for a batch."""

    loss: float
    answer_log_probs: Mapping[str, float]
    """The mean log-probability of the `chosen` and the `rejected` answers, if there are any."""


@dataclass(frozen=True)
class PreferenceLossCheck:
    """Checks the loss of a `dpo` or `kto` training, in evaluation mode. All ranks must run it."""

    sample: Sample

    def run(self) -> list[PreflightFinding]:
        """Compare the loss of a padded batch, and its log-probabilities, with those of each sequence alone.

        Raises `MODEL_UNSUPPORTED` if they differ.
        """
        batch = self.sample.collate(self.sample.rows)
        expected = self._compute_expectation(batch)
        numbers = [expected.loss, *expected.answer_log_probs.values()]
        if collectives.all_reduce_any(not all(map(math.isfinite, numbers)))[0]:
            return []  # the training itself handles a loss that is not finite
        loss, log_probs = self._compute_trainer_loss(expected.answer_log_probs)
        padding = self._check_padding(log_probs, expected.answer_log_probs)
        self._check_training_mode(loss, log_probs)
        # The loss depends on sums of log-probabilities, whose rounding errors grow with the number of tokens.
        rounding = self.sample.config.training.beta * math.sqrt(batch["input_ids"].shape[-1])
        if self._differ(loss, expected.loss, max(expected.loss, 1.0, rounding)):
            raise TrainerError(Reason.MODEL_UNSUPPORTED, self._build_error_message(loss, expected.loss))
        reference_name = "that of the log-probabilities of the model's logits"
        return [build_comparison("loss", "the trainer's loss", loss, reference_name, expected.loss), *padding]

    def _compute_expectation(self, batch: Mapping[str, Any]) -> _Expectation:
        answers = self._compute_log_probs(list(_iterate_sequences(batch, "")))
        beta = self.sample.config.training.beta
        if "label" not in batch:
            pairs = len(answers.policy) // 2
            log_probs = dict(zip(_ANSWER_KINDS, (answers.policy[:pairs], answers.policy[pairs:]), strict=True))
            loss = _compute_dpo_loss(answers.log_ratios[:pairs], answers.log_ratios[pairs:], beta)
        else:
            labels = [bool(label) for label in batch["label"]]
            kl = self._compute_log_probs(list(_iterate_sequences(batch, "KL_")))
            loss = _compute_kto_loss(answers.log_ratios, labels, max(fmean(kl.log_ratios), 0.0), beta)
            log_probs = {
                kind: [value for value, label in zip(answers.policy, labels, strict=True) if label == desirable]
                for kind, desirable in zip(_ANSWER_KINDS, (True, False), strict=True)
            }
        return _Expectation(loss, {kind: fmean(values) for kind, values in log_probs.items() if values})

    def _compute_log_probs(self, sequences: Sequence[LabeledTokens]) -> _LogProbs:
        """Return the log-probabilities of sequences. Each is computed on its own, so that padding cannot affect it."""
        model, heartbeat = self.sample.trainer.model, self.sample.heartbeat
        reference_name = REFERENCE_ADAPTER if REFERENCE_ADAPTER in model.peft_config else None  # None: the base model
        with self.sample.translate_errors("logits"):
            policy = [-compute_losses(model, [sequence], heartbeat).sums[0] for sequence in sequences]
            with use_adapter(model, reference_name):
                reference = [-compute_losses(model, [sequence], heartbeat).sums[0] for sequence in sequences]
        return _LogProbs(policy, reference)

    def _compute_trainer_loss(self, kinds: Iterable[str]) -> tuple[float, dict[str, float]]:
        """Return the trainer's loss of the batch, and its mean log-probability of each kind of answers."""
        loss = self.sample.compute_loss(self.sample.rows)
        metrics = self.sample.trainer._metrics["eval"]
        return loss, {kind: float(metrics[f"logps/{kind}"][-1]) for kind in kinds}

    def _check_training_mode(self, loss: float, log_probs: Mapping[str, float]) -> None:
        """Compare the same batch in training mode. Dropout is disabled, so any difference is noise."""
        with self.sample.training_mode():
            training_loss, training_log_probs = self._compute_trainer_loss(log_probs)
        values, noisy_values = sum(log_probs.values()), sum(training_log_probs.values())
        max_difference = select_tolerance(self.sample.config, _NOISE_TOLERANCES)
        is_noisy = not (
            abs(training_loss - loss) <= max_difference
            and abs(noisy_values - values) <= max_difference * max(abs(values), 1.0)
        )
        if collectives.all_reduce_any(is_noisy)[0]:
            raise TrainerError(
                Reason.MODEL_UNSUPPORTED,
                f"{self.sample.model_class} computes something else in training: the "
                f"{self.sample.config.training.method} loss of a batch is {training_loss:.6g} in training mode and "
                f"{loss:.6g} in evaluation mode, and the log-probability of its answers {noisy_values:.6g} and "
                f"{values:.6g}, so it cannot be compared with its reference; use method sft, or another base model",
            )

    def _check_padding(self, log_probs: Mapping[str, float], expected: Mapping[str, float]) -> list[PreflightFinding]:
        for kind, value in log_probs.items():
            if self._differ(value, expected[kind], max(abs(expected[kind]), 1.0)):
                raise TrainerError(
                    Reason.MODEL_UNSUPPORTED,
                    f"padding changes the log-probabilities of {self.sample.model_class}: the mean of the {kind} "
                    f"answers is {value:.6g} in a padded batch of the trainer and {expected[kind]:.6g} for the same "
                    "answers alone; use another training.backend, or a base model of another architecture",
                )
        value, reference = sum(log_probs.values()), sum(expected.values())
        subject = "the log-probability of the answers in a padded batch"
        return [build_comparison("padding", subject, value, "that of the answers alone", reference)]

    def _differ(self, value: float, expected: float, scale: float) -> bool:
        """Return whether the numbers differ in any rank."""
        max_difference = select_tolerance(self.sample.config, LOSS_TOLERANCES) * scale
        is_different = not abs(value - expected) <= max_difference
        return collectives.all_reduce_any(is_different)[0]

    def _build_error_message(self, loss: float, expected_loss: float) -> str:
        return (
            f"the trainer's {self.sample.config.training.method} loss for {self.sample.model_class} is {loss:.6g}, but "
            f"that of the log-probabilities of the model's own logits is {expected_loss:.6g}; use another "
            "training.backend, or a base model of another architecture"
        )


def _iterate_sequences(batch: Mapping[str, Any], prefix: str) -> Iterator[LabeledTokens]:
    """Yield the sequences of a batch without padding. The tensors have the shape (sequences, tokens)."""
    tensors = [batch[f"{prefix}{name}"].bool() for name in ("attention_mask", "completion_mask")]
    for input_ids, is_token, is_answer in zip(batch[f"{prefix}input_ids"], *tensors, strict=True):
        labels = torch.where(is_answer, input_ids, IGNORE_INDEX)
        yield LabeledTokens(input_ids[is_token].tolist(), labels[is_token].tolist())


def _compute_dpo_loss(chosen: Sequence[float], rejected: Sequence[float], beta: float) -> float:
    """Return the loss of pairs of log-ratios: -log sigmoid(beta * (chosen - rejected)), on average."""
    margins = torch.tensor(chosen, dtype=torch.float64) - torch.tensor(rejected, dtype=torch.float64)
    return float(-torch.nn.functional.logsigmoid(beta * margins).mean())


def _compute_kto_loss(log_ratios: Sequence[float], labels: Sequence[bool], kl: float, beta: float) -> float:
    """Return the loss of log-ratios (equation 7 of https://arxiv.org/abs/2402.01306), with the same weight of both
    labels. `kl` is the estimated divergence from the reference model."""
    signs = torch.tensor([1.0 if label else -1.0 for label in labels], dtype=torch.float64)
    return float((1 - torch.sigmoid(beta * signs * (torch.tensor(log_ratios, dtype=torch.float64) - kl))).mean())
