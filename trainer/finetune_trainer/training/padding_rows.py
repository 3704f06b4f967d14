"""Several workers take a whole batch each, or wait for each other for ever; rows that nothing is learnt from fill up.

accelerate would take rows of the epoch's start once more. With these, every row counts once, whatever their number, and
the loss of each step is that of one worker with batches as large as all of theirs. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler

from finetune_trainer.data.loss_masking import IGNORED
from finetune_trainer.training.packing import ROWS


def filled(rows: datasets.Dataset, batch: int, pad: int) -> tuple[datasets.Dataset, int]:
    """The rows, then so many fillers that batches of this size come out even; and how many those are."""
    missing = -len(rows) % batch
    if not missing:
        return rows, 0
    if ROWS in rows.column_names:
        columns: dict[str, list[list[int]]] = {ROWS: [[]] * missing}
    else:
        columns = {"input_ids": [[pad]] * missing, "labels": [[IGNORED]] * missing}
    fillers = datasets.Dataset.from_dict(columns, features=rows.features)
    return datasets.concatenate_datasets([rows, fillers]), missing


class FillersLast(torch.utils.data.Sampler[int]):
    """The rows in the random order that one worker would take them in, then the fillers."""

    def __init__(self, size: int, fillers: int, seed: int) -> None:
        self._size = size
        self._rows = SeedableRandomSampler(range(size - fillers), data_seed=seed)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        yield from self._rows
        yield from range(len(self._rows), self._size)

    def set_epoch(self, epoch: int) -> None:
        """Another order in each; accelerate calls it."""
        self._rows.set_epoch(epoch)
