"""Computes the log-likelihood of tokens under a model. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.data.loss_masking import IGNORE_INDEX

T = TypeVar("T")
_MAX_BATCH_TOKENS = 2048
"""Tokens of a batch, including padding. A longer row is a batch of its own."""


@dataclass(frozen=True)
class LabeledTokens:
    """A row in tokens; `labels[i]` is `input_ids[i]` or `IGNORE_INDEX`."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class RowLosses:
    """The loss of each row: the summed negative log-likelihood of its supervised tokens, in nats, and their number."""

    sums: list[float]
    token_counts: list[int]

    @property
    def mean(self) -> float:
        """Mean loss per supervised token, in nats."""
        return math.fsum(self.sums) / max(sum(self.token_counts), 1)


def measure_base_and_tuned(model: PeftModel, measure: Callable[[], T]) -> tuple[T, T]:
    """Return the results for the base model, which is the model with its adapter disabled, and for the tuned model."""
    tuned = measure()
    with model.disable_adapter():
        return measure(), tuned


def compute_losses(
    model: PeftModel | PreTrainedModel, rows: Sequence[LabeledTokens], heartbeat: Callable[[], None]
) -> RowLosses:
    """Return the loss of each row, without dropout and gradients. `heartbeat` is called after each batch."""
    sums, token_counts = [math.nan] * len(rows), [0] * len(rows)
    model.eval()
    with torch.no_grad():
        for batch in _group_by_length(rows):
            for index, loss, count in zip(
                batch, *_compute_batch_losses([rows[index] for index in batch], model), strict=True
            ):
                sums[index], token_counts[index] = loss, count
            heartbeat()
    return RowLosses(sums, token_counts)


def _group_by_length(rows: Sequence[LabeledTokens]) -> list[list[int]]:
    """Return batches of row numbers. Rows of similar length are in the same batch."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda row_index: -len(rows[row_index].input_ids)):
        longest = len(rows[batches[-1][0]].input_ids) if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > _MAX_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _compute_batch_losses(
    rows: Sequence[LabeledTokens], model: PeftModel | PreTrainedModel
) -> tuple[list[float], list[int]]:
    """Return summed loss and supervised tokens of each row. The tensors have the shape (rows, tokens), the logits
    (rows, tokens, vocabulary)."""
    ids, labels = _pad_rows([row.input_ids for row in rows], 0), _pad_rows([row.labels for row in rows], IGNORE_INDEX)
    attention_mask = _pad_rows([[1] * len(row.input_ids) for row in rows], 0)
    logits = model(
        input_ids=ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False
    ).logits
    targets = labels[:, 1:].to(model.device)
    supervised = targets != IGNORE_INDEX
    # Only supervised tokens: the logits of all tokens in 32 bits would take most of the memory and time.
    token_losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][supervised].float(), targets[supervised], reduction="none"
    )
    sums = torch.zeros(len(rows), dtype=torch.float64, device=token_losses.device)
    sums.index_add_(0, supervised.nonzero()[:, 0], token_losses.double())
    return sums.tolist(), supervised.sum(1).tolist()


def _pad_rows(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
