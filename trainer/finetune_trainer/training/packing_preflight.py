"""Checks that a model keeps packed rows apart, before the first step. Imports TRL, so import this module only after the
backend.

Many architectures ignore that positions start again, on which packing relies: some masks know nothing of positions, and
the state of a recurrent layer passes from row to row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import datasets
import torch

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.distributed import collectives
from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling.likelihood import LabeledTokens
from finetune_trainer.training import packing
from finetune_trainer.training.loss_preflight import MAX_ROWS, evaluation_mode, select_tolerance, truncate_to_supervised

if TYPE_CHECKING:
    from finetune_trainer.training.methods.sft_trainer import TokenizedSFTTrainer

log = logging.getLogger(__name__)

_MAX_TOKENS_PER_ROW = 64
"""Of a row."""
_INFLUENCE_TOLERANCES = {"fp32": 1e-3, "bf16": 0.01, "fp16": 0.01, "int8": 0.2}
"""Nats by which a token may change when the rows before it change, on average over a row. In models that keep rows
apart nothing changes, since all else stays the same."""
_DIFFERENCE_TOLERANCES = {"fp32": 1e-3, "bf16": 0.2, "fp16": 0.2, "int8": 0.2}
"""The same between a packed row and the row alone, which is rounded in another way."""


@dataclass(frozen=True)
class _LogProbPair:
    """A row packed and otherwise, by the logarithm of each token's probability."""

    packed: torch.Tensor
    reference: torch.Tensor

    @property
    def mean_change(self) -> float:
        """Of a token on average; a mean over rows, or of gains and losses, can hide what a neighbour changes."""
        return float((self.packed - self.reference).abs().mean())


@dataclass(frozen=True)
class PackingCheck:
    """The check of one training, in all of its workers at once."""

    trainer: TokenizedSFTTrainer
    config: TrainerConfig
    rows: datasets.Dataset
    """As they were prepared, not packed."""
    pad_token_id: int
    heartbeat: Callable[[], None]

    def run(self) -> None:
        """Compare rows in packed sequences with the same alone. Raises `CONFIG_INVALID` if the model mixes them."""
        sequences = self.trainer.train_dataset[packing.ROWS_COLUMN]
        row_numbers = next((sequence for sequence in sequences if len(sequence) > 1), None)
        if row_numbers is None:
            return  # no row shares a sequence with another
        self._check_accepts_position_ids()
        truncated_rows = [
            truncate_to_supervised(self.rows[number], _MAX_TOKENS_PER_ROW) for number in row_numbers[:MAX_ROWS]
        ]
        with evaluation_mode(self.trainer):
            influence, difference = self._compare_log_probs([truncated_rows, truncated_rows[::-1]])
        limits = (
            select_tolerance(self.config, tolerances) for tolerances in (_INFLUENCE_TOLERANCES, _DIFFERENCE_TOLERANCES)
        )
        if collectives.all_reduce_any(
            any(not effect.mean_change <= limit for effect, limit in zip((influence, difference), limits, strict=True))
        )[0]:
            raise TrainerError(Reason.CONFIG_INVALID, _build_error_message(influence, difference))
        log.info("preflight: packed rows do not change each other (a token by %.2g nats)", influence.mean_change)

    def _check_accepts_position_ids(self) -> None:
        model = self.trainer.model.get_base_model()
        parameters = inspect.signature(model.forward).parameters
        accepts_kwargs = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if "position_ids" not in parameters and not accepts_kwargs:
            message = (
                f"training.packing: {type(model).__name__} takes no positions, so it cannot keep packed rows apart; "
                "set training.packing to false"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)

    def _compare_log_probs(self, orders: Sequence[Sequence[LabeledTokens]]) -> tuple[_LogProbPair, _LogProbPair]:
        """The last rows of sequences with the same after other rows, and all rows but the first ones with the same
        alone: of both the row that changes most."""
        packed_log_probs = self._compute_packed_log_probs(orders)
        perturbed_log_probs = self._compute_packed_log_probs(
            [[*map(_reverse_tokens, order[:-1]), order[-1]] for order in orders]
        )
        influences = [
            _LogProbPair(original[-1], perturbed[-1])
            for original, perturbed in zip(packed_log_probs, perturbed_log_probs, strict=True)
        ]
        differences = [
            _LogProbPair(log_probs, self._compute_single_row_log_probs(row))
            for order, sequence in zip(orders, packed_log_probs, strict=True)
            for row, log_probs in list(zip(order, sequence, strict=True))[1:]
        ]
        return max(influences, key=_get_mean_change), max(differences, key=_get_mean_change)

    def _compute_packed_log_probs(self, sequences: Sequence[Sequence[LabeledTokens]]) -> list[list[torch.Tensor]]:
        """Of each row of each sequence; batches are not larger than in the training."""
        batch_size = min(self.config.training.batch_size, len(sequences))
        batches = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
        return [sequence_log_probs for batch in batches for sequence_log_probs in self._compute_batch_log_probs(batch)]

    def _compute_batch_log_probs(self, sequences: Sequence[Sequence[LabeledTokens]]) -> list[list[torch.Tensor]]:
        rows = [{"input_ids": row.input_ids, "labels": row.labels} for sequence in sequences for row in sequence]
        row_numbers = iter(range(len(rows)))
        collator = packing.PackingCollator(datasets.Dataset.from_list(rows), self.pad_token_id)
        batch = collator([{packing.ROWS_COLUMN: [next(row_numbers) for _ in sequence]} for sequence in sequences])
        logits = self._compute_logits({name: batch[name] for name in ("input_ids", "position_ids")})
        return [
            _split_log_probs_by_row(sequence_logits, sequence)
            for sequence_logits, sequence in zip(logits, sequences, strict=True)
        ]

    def _compute_single_row_log_probs(self, row: LabeledTokens) -> torch.Tensor:
        return _compute_token_log_probs(self._compute_logits({"input_ids": torch.tensor([row.input_ids])})[0], row)

    def _compute_logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.heartbeat()
        device_inputs = {name: tensor.to(self.trainer.model.device) for name, tensor in inputs.items()}
        logits: torch.Tensor = self.trainer.model(**device_inputs, use_cache=False).logits
        return logits


def _get_mean_change(pair: _LogProbPair) -> float:
    return pair.mean_change


def _reverse_tokens(row: LabeledTokens) -> LabeledTokens:
    """Other tokens in the same places."""
    return LabeledTokens(row.input_ids[::-1], row.labels)


def _split_log_probs_by_row(logits: torch.Tensor, rows: Sequence[LabeledTokens]) -> list[torch.Tensor]:
    ends = list(accumulate(len(row.input_ids) for row in rows))
    logits_per_row = (logits[start:end] for start, end in zip([0, *ends], ends, strict=False))
    return [_compute_token_log_probs(row_logits, part) for row_logits, part in zip(logits_per_row, rows, strict=True)]


def _compute_token_log_probs(logits: torch.Tensor, row: LabeledTokens) -> torch.Tensor:
    """The logarithm of each token's, but for the first."""
    targets = torch.tensor(row.input_ids[1:], device=logits.device)
    return -torch.nn.functional.cross_entropy(logits[:-1].float(), targets, reduction="none")


def _build_error_message(influence: _LogProbPair, difference: _LogProbPair) -> str:
    packed_loss, single_loss = -float(difference.packed.mean()), -float(difference.reference.mean())
    return (
        f"training.packing: this model mixes packed rows: the loss of a row is {packed_loss:.6g} packed and "
        f"{single_loss:.6g} "
        f"alone, and a token of it changes by {influence.mean_change:.3g} nats with the rows before it; set "
        "training.packing to false"
    )
