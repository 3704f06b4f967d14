"""The lengths of prepared rows, and the tokens that a pass over them computes. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finetune_trainer.contract import TrainerConfig

if TYPE_CHECKING:
    import datasets

Lengths = npt.NDArray[np.int64]
"""Numbers of tokens, of shape (rows,)."""
_ROWS_PER_READ = 10_000
_MIN_PASS_TOKENS = 1024
"""A forward pass of fewer tokens takes about as long, because it starts the same number of kernels."""


def measure_lengths(rows: datasets.Dataset) -> Lengths:
    """Return the tokens of each row: of a preference row those of its prompt and of its longest answer."""
    import pyarrow.compute as pc

    names = [name for name in rows.column_names if name.endswith("_ids")]
    batches = rows.select_columns(names).with_format("arrow").iter(_ROWS_PER_READ)
    lengths = np.concatenate(
        [np.stack([pc.list_value_length(batch[name]).to_numpy() for name in names]) for batch in batches], axis=1
    )
    columns = dict(zip(names, lengths.astype(np.int64), strict=True))
    prompts = columns.pop("prompt_ids", np.zeros(lengths.shape[1], np.int64))
    longest: Lengths = prompts + np.max(list(columns.values()), axis=0)
    return longest


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
