"""Computes the log-likelihood of tokens under a model. Imports torch, so import this module only after the backend."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import datasets
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.modeling.batch_limits import LOGIT_CHUNK_TOKENS, MAX_LOSS_TOKENS
from finetune_trainer.modeling.language_part import is_head_in_decoder
from finetune_trainer.modeling.logits import compute_logits, matches_own_logits, run_decoder

log = logging.getLogger(__name__)

T = TypeVar("T")
_ROWS_IN_MEMORY = 256


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
    model: PeftModel | PreTrainedModel,
    rows: Sequence[LabeledTokens],
    heartbeat: Callable[[], None],
    max_batch_tokens: int = MAX_LOSS_TOKENS,
) -> RowLosses:
    """Return the loss of each row, without dropout and gradients. `heartbeat` is called after each batch.

    Only the logits of `LOGIT_CHUNK_TOKENS` tokens are in memory at once, if the class of the model allows it.
    Otherwise each row is a batch of its own, and all its logits are in memory.
    """
    sums, token_counts = [math.nan] * len(rows), [0] * len(rows)
    model.eval()
    with torch.no_grad():
        in_chunks = _can_compute_in_chunks(model, rows)
        for batch in _group_by_length(rows, max_batch_tokens if in_chunks else 0):
            for index, loss, count in zip(
                batch, *_compute_batch_losses([rows[index] for index in batch], model, in_chunks), strict=True
            ):
                sums[index], token_counts[index] = loss, count
            heartbeat()
    return RowLosses(sums, token_counts)


def compute_dataset_losses(
    model: PeftModel | PreTrainedModel,
    rows: datasets.Dataset,
    heartbeat: Callable[[], None],
    max_batch_tokens: int = MAX_LOSS_TOKENS,
) -> RowLosses:
    """Return the loss of each row of a dataset with the columns `input_ids` and `labels`. Only the tokens of 256 rows
    are in memory at once."""
    sums: list[float] = []
    token_counts: list[int] = []
    for start in range(0, len(rows), _ROWS_IN_MEMORY):
        columns = rows[start : start + _ROWS_IN_MEMORY]
        labeled_rows = [*map(LabeledTokens, columns["input_ids"], columns["labels"])]
        losses = compute_losses(model, labeled_rows, heartbeat, max_batch_tokens)
        sums += losses.sums
        token_counts += losses.token_counts
    return RowLosses(sums, token_counts)


def _can_compute_in_chunks(model: PeftModel | PreTrainedModel, rows: Sequence[LabeledTokens]) -> bool:
    """Return whether logits can be computed in chunks. Rows with few tokens need no chunks, and no check."""
    if sum(len(row.input_ids) for row in rows) <= LOGIT_CHUNK_TOKENS:
        return True
    longest = max(rows, key=lambda row: len(row.input_ids))
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not is_head_in_decoder(base) and matches_own_logits(model, longest.input_ids):
        return True
    log.warning(
        "likelihood: the logits of this model cannot be computed in chunks; all logits of a row are in memory at once"
    )
    return False


def _group_by_length(rows: Sequence[LabeledTokens], max_batch_tokens: int) -> list[list[int]]:
    """Return batches of row numbers. Rows of similar length are in the same batch."""
    batches: list[list[int]] = []
    for index in sorted(range(len(rows)), key=lambda row_index: -len(rows[row_index].input_ids)):
        longest = len(rows[batches[-1][0]].input_ids) if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > max_batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def _compute_batch_losses(
    rows: Sequence[LabeledTokens], model: PeftModel | PreTrainedModel, in_chunks: bool
) -> tuple[list[float], list[int]]:
    """Return summed loss and supervised tokens of each row."""
    inputs = {
        "input_ids": _pad_rows([row.input_ids for row in rows], 0).to(model.device),
        "attention_mask": _pad_rows([[1] * len(row.input_ids) for row in rows], 0).to(model.device),
    }
    targets = _pad_rows([row.labels for row in rows], IGNORE_INDEX)[:, 1:].to(model.device)
    supervised = (targets != IGNORE_INDEX).nonzero()  # shape (supervised tokens, 2): row and position
    uses_decoder = in_chunks and inputs["input_ids"].numel() > LOGIT_CHUNK_TOKENS
    compute_at = (run_decoder if uses_decoder else compute_logits)(model, inputs)
    sums = torch.zeros(len(rows), dtype=torch.float64, device=model.device)
    for start in range(0, len(supervised), LOGIT_CHUNK_TOKENS):
        row_numbers, positions = supervised[start : start + LOGIT_CHUNK_TOKENS].T
        logits = compute_at(row_numbers, positions).float()
        token_losses = torch.nn.functional.cross_entropy(logits, targets[row_numbers, positions], reduction="none")
        sums.index_add_(0, row_numbers, token_losses.double())
    return sums.tolist(), (targets != IGNORE_INDEX).sum(1).tolist()


def _pad_rows(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
