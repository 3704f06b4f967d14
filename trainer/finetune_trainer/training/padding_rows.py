"""Several workers take a whole batch each, or wait for each other for ever; rows that nothing is learnt from fill up.

accelerate would take rows of the epoch's start once more. With these, every row counts once, whatever their number, and
the loss of each step is that of one worker with batches as large as all of theirs. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.training.packing import ROWS_COLUMN


def pad_dataset(rows: datasets.Dataset, batch_size: int, pad_token_id: int) -> tuple[datasets.Dataset, int]:
    """The rows, then so many fillers that batches of this size come out even; and how many those are."""
    padding_count = -len(rows) % batch_size
    if not padding_count:
        return rows, 0
    if ROWS_COLUMN in rows.column_names:
        columns: dict[str, list[list[int]]] = {ROWS_COLUMN: [[]] * padding_count}
    else:
        columns = {"input_ids": [[pad_token_id]] * padding_count, "labels": [[IGNORE_INDEX]] * padding_count}
    padding_rows = datasets.Dataset.from_dict(columns, features=rows.features)
    return datasets.concatenate_datasets([rows, padding_rows]), padding_count


class PaddingRowsLastSampler(torch.utils.data.Sampler[int]):
    """The rows in the random order that one worker would take them in, then the fillers."""

    def __init__(self, size: int, padding_count: int, seed: int) -> None:
        self._size = size
        self._row_sampler = SeedableRandomSampler(range(size - padding_count), data_seed=seed)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        yield from self._row_sampler
        yield from range(len(self._row_sampler), self._size)

    def set_epoch(self, epoch: int) -> None:
        """Another order in each; accelerate calls it."""
        self._row_sampler.set_epoch(epoch)
