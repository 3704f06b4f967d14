"""The tokens that a pass over the rows computes, for comparisons of speed. Imports no torch."""

from __future__ import annotations

import numpy as np

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.batching import Lengths

_MIN_PASS_TOKENS = 1024
"""A forward pass of fewer tokens takes about as long, because it starts the same number of kernels."""


def count_computed_tokens(config: TrainerConfig, lengths: Lengths) -> int:
    """Return the tokens that one pass over the rows computes, including padding. A pass of few tokens counts as 1024.

    Batches of `byLength` are counted as if all rows were sorted. Sequences of `packed` are counted as full.
    """
    training, count = config.training, len(lengths)
    if training.effective_batching == "packed":
        return max(int(lengths.sum()), _MIN_PASS_TOKENS)
    by_length = training.effective_batching == "byLength"
    order = np.argsort(lengths) if by_length else np.random.default_rng(training.seed).permutation(count)
    starts = np.arange(0, count, training.batch_size)
    if training.effective_batching == "paddingFree":
        tokens = np.add.reduceat(lengths[order], starts)
    else:
        tokens = np.maximum.reduceat(lengths[order], starts) * np.diff(np.append(starts, count))
    return int(np.maximum(tokens, _MIN_PASS_TOKENS).sum())
