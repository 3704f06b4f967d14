"""Padding rows that complete the last batch of an epoch, because several ranks must have equal numbers of batches.

accelerate would repeat rows from the start of the epoch instead. With padding rows, which have no supervised tokens,
every row counts once, and the loss of each step is that of one process with the batches of all ranks together. Imports
torch.
"""

from __future__ import annotations

from collections.abc import Iterator

import datasets
import torch
from accelerate.data_loader import SeedableRandomSampler

from finetune_trainer.data.loss_masking import IGNORE_INDEX
from finetune_trainer.training.length_sampler import LengthSampler
from finetune_trainer.training.packing import ROWS_COLUMN


def pad_dataset(rows: datasets.Dataset, batch_size: int, pad_token_id: int) -> tuple[datasets.Dataset, int]:
    """Append padding rows to get a multiple of `batch_size`. Return the rows and the number of padding rows."""
    padding_count = -len(rows) % batch_size
    if not padding_count:
        return rows, 0
    columns = {name: [value] * padding_count for name, value in _build_padding_row(rows, pad_token_id).items()}
    padding_rows = datasets.Dataset.from_dict(columns, features=rows.features)
    return datasets.concatenate_datasets([rows, padding_rows]), padding_count


def _build_padding_row(rows: datasets.Dataset, pad_token_id: int) -> dict[str, list[int]]:
    """Return a row without supervised tokens, in the columns of these rows."""
    if ROWS_COLUMN in rows.column_names:
        return {ROWS_COLUMN: []}
    if "chosen_ids" in rows.column_names:
        return {"prompt_ids": [pad_token_id] * 2, "chosen_ids": [], "rejected_ids": []}
    return {"input_ids": [pad_token_id], "labels": [IGNORE_INDEX]}


class PaddingRowsLastSampler(torch.utils.data.Sampler[int]):
    """Yields the rows in the order of a single process, then the padding rows."""

    def __init__(self, row_sampler: SeedableRandomSampler | LengthSampler, padding_count: int) -> None:
        self._row_sampler = row_sampler
        self._padding_count = padding_count

    def __len__(self) -> int:
        return len(self._row_sampler) + self._padding_count

    def __iter__(self) -> Iterator[int]:
        yield from self._row_sampler
        yield from range(len(self._row_sampler), len(self))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order. accelerate calls it."""
        self._row_sampler.set_epoch(epoch)
