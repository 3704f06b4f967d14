"""The tokens that a pass over the rows computes, for comparisons of speed. Imports no torch."""

from __future__ import annotations

import numpy as np

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training.batching import Lengths, measure_batches

_MIN_PASS_TOKENS = 1024
"""A forward pass of fewer tokens takes about as long, because it starts the same number of kernels."""


def count_computed_tokens(config: TrainerConfig, lengths: Lengths) -> int:
    """Return the tokens that one pass over the rows computes, including padding. A forward pass of few tokens counts as
    1024. Sequences of `packed` are counted as full."""
    training = config.training
    if training.effective_batching == "packed":
        return max(int(lengths.sum()), _MIN_PASS_TOKENS)
    sizes = measure_batches(lengths, training.batch_size, training.effective_batching, training.seed)
    return int(np.maximum(sizes, _MIN_PASS_TOKENS).sum())
