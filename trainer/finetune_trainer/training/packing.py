"""Several short rows in one sequence, none of them cut, each seeing itself alone. Needs no torch until it collates."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.loss_masking import IGNORED

if TYPE_CHECKING:
    import datasets
    import torch

ROWS = "rows"
"""The column of a packed data set: the numbers of the rows of one sequence."""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Every row's number once, in sequences of at most `capacity` tokens; best fit, the longest first."""
    sequences: list[list[int]] = []
    free: list[tuple[int, int]] = []  # tokens that are left and the sequence, sorted
    for row in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        place = bisect_left(free, (lengths[row], 0))
        if place == len(free):
            left, number = capacity, len(sequences)
            sequences.append([])
        else:
            left, number = free.pop(place)
        sequences[number].append(row)
        insort(free, (left - lengths[row], number))
    return sequences


def packed(rows: datasets.Dataset, capacity: int) -> datasets.Dataset:
    """The sequences of these rows."""
    import datasets

    lengths = [len(ids) for batch in rows.iter(1000) for ids in batch["input_ids"]]
    return datasets.Dataset.from_dict({ROWS: pack(lengths, capacity)})


@dataclass(frozen=True)
class Collator:
    """Looks up the rows of each sequence and numbers their tokens anew.

    Without an attention mask and a cache, transformers takes each step back of the positions for the start of another
    text that sees nothing before it; with a mask it would not.
    """

    rows: datasets.Dataset
    pad: int

    def __call__(self, sequences: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        import torch
        from torch.nn.utils.rnn import pad_sequence

        joined = [self._joined(sequence[ROWS]) for sequence in sequences]
        padding = {"input_ids": self.pad, "labels": IGNORED, "position_ids": 0}
        columns = {
            name: pad_sequence([torch.tensor(each[name]) for each in joined], batch_first=True, padding_value=value)
            for name, value in padding.items()
        }
        return {**columns, "token_count": torch.tensor(self._tokens(joined))}

    def _tokens(self, joined: list[dict[str, list[int]]]) -> int:
        """Of rows, not of what fills up."""
        return sum(len(each["input_ids"]) for each in joined if any(label != IGNORED for label in each["labels"]))

    def _joined(self, numbers: Sequence[int]) -> dict[str, list[int]]:
        if not numbers:  # it only fills a batch up; no model takes a sequence of nothing
            return {"input_ids": [self.pad], "labels": [IGNORED], "position_ids": [0]}
        joined: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for number in numbers:
            row = self.rows[number]
            joined["input_ids"] += row["input_ids"]
            joined["labels"] += [IGNORED, *row["labels"][1:]]  # nothing of this row comes before its first token
            joined["position_ids"] += range(len(row["input_ids"]))
        return joined
