"""The sampler of `training.batching: byLength`. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from finetune_trainer.training.batching import Lengths, order_by_length


class LengthSampler(torch.utils.data.Sampler[int]):
    """Yields the rows of an epoch in the order of `order_by_length`, which depends only on the seed and the epoch.

    transformers' own sampler for lengths forms other batches for each number of ranks.
    """

    def __init__(self, lengths: Sequence[int] | Lengths, batch_size: int, step_rows: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._step_rows = step_rows
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        yield from order_by_length(self._lengths, self._batch_size, self._step_rows, self._seed, self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order. accelerate calls it."""
        self._epoch = epoch
