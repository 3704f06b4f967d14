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


def pack_dataset(rows: datasets.Dataset, capacity: int) -> datasets.Dataset:
    """Return a dataset of packed sequences."""
    import datasets

    lengths = [len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]]
    return datasets.Dataset.from_dict({ROWS_COLUMN: pack(lengths, capacity)})


@dataclass(frozen=True)
class PackingCollator:
    """Concatenates the rows of each sequence, with position IDs that restart with each row.

    Without an attention mask and a cache, transformers interprets a decrease of the position IDs as the start of
    another text without attention to the previous one; with a mask it does not.
    """

    rows: datasets.Dataset
    pad_token_id: int

    def __call__(self, sequences: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `labels` and `position_ids` of shape (sequences, tokens), and `token_count`, a scalar."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        concatenated = [self._concatenate_rows(sequence[ROWS_COLUMN]) for sequence in sequences]
        padding = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "position_ids": 0}
        batch = {
            name: pad_sequence(
                [torch.tensor(columns[name]) for columns in concatenated], batch_first=True, padding_value=value
            )
            for name, value in padding.items()
        }
        return {**batch, "token_count": torch.tensor(self._count_tokens(concatenated))}

    def _count_tokens(self, sequences: list[dict[str, list[int]]]) -> int:
        """Return the number of tokens of rows. Padding rows do not count."""
        return sum(
            len(sequence["input_ids"])
            for sequence in sequences
            if any(label != IGNORE_INDEX for label in sequence["labels"])
        )

    def _concatenate_rows(self, row_numbers: Sequence[int]) -> dict[str, list[int]]:
        if not row_numbers:  # a padding row: a model needs at least one token
            return {"input_ids": [self.pad_token_id], "labels": [IGNORE_INDEX], "position_ids": [0]}
        columns: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for number in row_numbers:
            row = self.rows[number]
            columns["input_ids"] += row["input_ids"]
            columns["labels"] += [IGNORE_INDEX, *row["labels"][1:]]  # no token of this row precedes the first one
            columns["position_ids"] += range(len(row["input_ids"]))
        return columns
