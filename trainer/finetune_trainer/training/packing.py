"""Several short rows in one sequence, none of them cut, each seeing itself alone. Needs no torch until it collates."""

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
"""The column of a packed data set: the numbers of the rows of one sequence."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Every row's number once, in sequences of at most `capacity` tokens; best fit, the longest first."""
    sequences: list[list[int]] = []
    free_space: list[tuple[int, int]] = []  # tokens that are left and the sequence, sorted
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
    """The sequences of these rows."""
    import datasets

    lengths = [len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]]
    return datasets.Dataset.from_dict({ROWS_COLUMN: pack(lengths, capacity)})


@dataclass(frozen=True)
class PackingCollator:
    """Looks up the rows of each sequence and numbers their tokens anew.

    Without an attention mask and a cache, transformers takes each step back of the positions for the start of another
    text that sees nothing before it; with a mask it would not.
    """

    rows: datasets.Dataset
    pad_token_id: int

    def __call__(self, sequences: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        concatenated = [self._concatenate_rows(sequence[ROWS_COLUMN]) for sequence in sequences]
        padding = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "position_ids": 0}
        columns = {
            name: pad_sequence(
                [torch.tensor(each[name]) for each in concatenated], batch_first=True, padding_value=value
            )
            for name, value in padding.items()
        }
        return {**columns, "token_count": torch.tensor(self._count_tokens(concatenated))}

    def _count_tokens(self, sequences: list[dict[str, list[int]]]) -> int:
        """Of rows, not of what fills up."""
        return sum(
            len(sequence["input_ids"])
            for sequence in sequences
            if any(label != IGNORE_INDEX for label in sequence["labels"])
        )

    def _concatenate_rows(self, row_numbers: Sequence[int]) -> dict[str, list[int]]:
        if not row_numbers:  # it only fills a batch up; no model takes a sequence of nothing
            return {"input_ids": [self.pad_token_id], "labels": [IGNORE_INDEX], "position_ids": [0]}
        columns: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for number in row_numbers:
            row = self.rows[number]
            columns["input_ids"] += row["input_ids"]
            columns["labels"] += [IGNORE_INDEX, *row["labels"][1:]]  # nothing of this row comes before its first token
            columns["position_ids"] += range(len(row["input_ids"]))
        return columns
