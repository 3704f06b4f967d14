"""How likely a model finds given tokens. Imports torch, so import this module only after the backend."""

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
"""Padding included; a row that is longer goes alone."""


@dataclass(frozen=True)
class LabeledTokens:
    """A row; `labels[i]` is `input_ids[i]` or `IGNORED`."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class RowLosses:
    """Of each row the sum of its learnt tokens' negative log-likelihoods, in nats, and how many tokens those are."""

    sums: list[float]
    token_counts: list[int]

    @property
    def mean(self) -> float:
        """Per token, over all rows."""
        return math.fsum(self.sums) / max(sum(self.token_counts), 1)


def measure_base_and_tuned(model: PeftModel, measure: Callable[[], T]) -> tuple[T, T]:
    """The same measured of both: the base is the model with its adapter switched off."""
    tuned = measure()
    with model.disable_adapter():
        return measure(), tuned


def compute_losses(
    model: PeftModel | PreTrainedModel, rows: Sequence[LabeledTokens], heartbeat: Callable[[], None]
) -> RowLosses:
    """Of each row, without dropout and without gradients; `alive` is called after each batch."""
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
    """Rows of like length together."""
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
    ids, labels = _pad_rows([row.input_ids for row in rows], 0), _pad_rows([row.labels for row in rows], IGNORE_INDEX)
    attention_mask = _pad_rows([[1] * len(row.input_ids) for row in rows], 0)
    logits = model(
        input_ids=ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False
    ).logits
    targets = labels[:, 1:].to(model.device)
    supervised = targets != IGNORE_INDEX
    # Of learnt tokens alone: in 32 bits, the logits of all would be most of the memory and of the time.
    token_losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][supervised].float(), targets[supervised], reduction="none"
    )
    sums = torch.zeros(len(rows), dtype=torch.float64, device=token_losses.device)
    sums.index_add_(0, supervised.nonzero()[:, 0], token_losses.double())
    return sums.tolist(), supervised.sum(1).tolist()


def _pad_rows(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
