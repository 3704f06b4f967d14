"""How likely a model finds given tokens. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.data.loss_masking import IGNORED

T = TypeVar("T")
_BATCH_TOKENS = 2048
"""Padding included; a row that is longer goes alone."""


@dataclass(frozen=True)
class Tokens:
    """A row; `labels[i]` is `input_ids[i]` or `IGNORED`."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Losses:
    """Of each row the sum of its learnt tokens' negative log-likelihoods, in nats, and how many tokens those are."""

    sums: list[float]
    tokens: list[int]

    @property
    def mean(self) -> float:
        """Per token, over all rows."""
        return math.fsum(self.sums) / max(sum(self.tokens), 1)


def base_and_tuned(model: PeftModel, measure: Callable[[], T]) -> tuple[T, T]:
    """The same measured of both: the base is the model with its adapter switched off."""
    tuned = measure()
    with model.disable_adapter():
        return measure(), tuned


def losses(model: PeftModel | PreTrainedModel, rows: Sequence[Tokens], alive: Callable[[], None]) -> Losses:
    """Of each row, without dropout and without gradients; `alive` is called after each batch."""
    sums, tokens = [math.nan] * len(rows), [0] * len(rows)
    model.eval()
    with torch.no_grad():
        for batch in _batches(rows):
            for index, loss, count in zip(batch, *_batch([rows[index] for index in batch], model), strict=True):
                sums[index], tokens[index] = loss, count
            alive()
    return Losses(sums, tokens)


def _batches(rows: Sequence[Tokens]) -> list[list[int]]:
    """Rows of like length together."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda each: -len(rows[each].input_ids)):
        longest = len(rows[batches[-1][0]].input_ids) if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def _batch(rows: Sequence[Tokens], model: PeftModel | PreTrainedModel) -> tuple[list[float], list[int]]:
    ids, labels = _padded([row.input_ids for row in rows], 0), _padded([row.labels for row in rows], IGNORED)
    mask = _padded([[1] * len(row.input_ids) for row in rows], 0)
    logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
    targets = labels[:, 1:].to(model.device)
    learnt = targets != IGNORED
    # Of learnt tokens alone: in 32 bits, the logits of all would be most of the memory and of the time.
    each = torch.nn.functional.cross_entropy(logits[:, :-1][learnt].float(), targets[learnt], reduction="none")
    sums = torch.zeros(len(rows), dtype=torch.float64, device=each.device)
    sums.index_add_(0, learnt.nonzero()[:, 0], each.double())
    return sums.tolist(), learnt.sum(1).tolist()


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
