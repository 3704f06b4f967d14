"""Packs several short rows into one sequence, without truncation and without attention between rows. Imports torch
inside functions only."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.loss_masking import IGNORE_INDEX

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import numpy.typing as npt
    import torch

ROWS_COLUMN = "rows"
"""The column of a packed dataset: the row numbers of each sequence."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the row numbers of each sequence of at most `capacity` tokens, by best-fit decreasing bin packing."""
    sequences: list[list[int]] = []
    free_space: list[tuple[int, int]] = []  # free tokens and sequence number, sorted
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        slot = bisect_left(free_space, (lengths[row], 0))
        if slot == len(free_space):
            room, sequence_number = capacity, len(sequences)
            sequences.append([])
        else:
            room, sequence_number = free_space.pop(slot)
        sequences[sequence_number].append(row)
        insort(free_space, (room - lengths[row], sequence_number))
    return sequences


def pack_dataset(lengths: npt.NDArray[np.int64], capacity: int) -> datasets.Dataset:
    """Return a dataset of packed sequences of rows of these lengths."""
    import datasets

    return datasets.Dataset.from_dict({ROWS_COLUMN: pack(lengths.tolist(), capacity)})


def shares_sequences(sequences: datasets.Dataset) -> bool:
    """Return whether a sequence of a packed dataset has several rows."""
    return any(len(row_numbers) > 1 for row_numbers in sequences[ROWS_COLUMN])


@dataclass(frozen=True)
class PackingCollator:
    """Makes a batch of a packed dataset."""

    rows: datasets.Dataset
    pad_token_id: int
    joins_sequences: bool = False
    """Whether a batch is one sequence. Unsloth does not keep rows apart in a batch of several sequences."""

    def __call__(self, sequences: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the tensors and counts of a batch of shared sequences."""
        rows = [[self.rows[number] for number in sequence[ROWS_COLUMN]] for sequence in sequences]
        if self.joins_sequences:
            rows = [[row for sequence_rows in rows for row in sequence_rows]]
        return _collate_with_counts(rows, self.pad_token_id)


@dataclass(frozen=True)
class PaddingFreeCollator:
    """Makes one sequence of the rows of a batch."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the tensors and counts of a batch of one sequence."""
        # A padding row, which completes the last batch of several ranks, needs no place in a sequence.
        own_rows = [row for row in rows if _count_supervised(row)]
        return _collate_with_counts([own_rows], self.pad_token_id)


def _collate_with_counts(
    sequences: Sequence[Sequence[Mapping[str, Any]]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Return the tensors of `collate_sequences`, and as scalars `token_count`, the tokens without padding, and
    `supervised_count`, the supervised tokens as they are counted for padded rows: with the first one of a row."""
    import torch

    rows = [row for sequence_rows in sequences for row in sequence_rows]
    counts = {
        "token_count": sum(len(row["input_ids"]) for row in rows),
        "supervised_count": sum(map(_count_supervised, rows)),
    }
    return {
        **collate_sequences(sequences, pad_token_id),
        **{name: torch.tensor(count) for name, count in counts.items()},
    }


def _count_supervised(row: Mapping[str, Any]) -> int:
    return sum(label != IGNORE_INDEX for label in row["labels"])


def collate_sequences(sequences: Sequence[Sequence[Mapping[str, Any]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Concatenate the rows of each sequence, with position IDs that restart with each row.

    Without an attention mask and a cache, transformers interprets a decrease of the position IDs as the start of
    another text without attention to the previous one; with a mask it does not. Returns `input_ids`, `labels` and
    `position_ids` of shape (sequences, tokens).
    """
    import torch

    concatenated = [_concatenate_rows(rows, pad_token_id) for rows in sequences]
    size = max(len(columns["input_ids"]) for columns in concatenated)
    padded = [_pad_sequence(columns, size, pad_token_id) for columns in concatenated]
    return {name: torch.tensor([columns[name] for columns in padded]) for name in padded[0]}


def _concatenate_rows(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, list[int]]:
    if not rows:  # a padding row: a model needs at least one token
        return {"input_ids": [pad_token_id], "labels": [IGNORE_INDEX], "position_ids": [0]}
    columns: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        columns["input_ids"] += row["input_ids"]
        columns["labels"] += [IGNORE_INDEX, *row["labels"][1:]]  # no token of this row precedes the first one
        columns["position_ids"] += range(len(row["input_ids"]))
    return columns


def _pad_sequence(columns: Mapping[str, list[int]], size: int, pad_token_id: int) -> dict[str, list[int]]:
    """Append padding that continues the last row, as without packing.

    As a text of its own, its hidden state would be the embedding of the padding token. That can be zero, and then the
    norms of Gemma 3n have the gradient NaN.
    """
    length, next_position = len(columns["input_ids"]), columns["position_ids"][-1] + 1
    return {
        "input_ids": columns["input_ids"] + [pad_token_id] * (size - length),
        "labels": columns["labels"] + [IGNORE_INDEX] * (size - length),
        "position_ids": [*columns["position_ids"], *range(next_position, next_position + size - length)],
    }
