"""How rows form batches: the order of `byLength`, and the padding of each value of `training.batching`.

Imports numpy but no torch, so that `finetune-trainer plan` can use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.training import packing

if TYPE_CHECKING:
    import datasets

Lengths = npt.NDArray[np.int64]
"""Numbers of tokens, of shape (rows,)."""
Batching = Literal["padded", "byLength", "paddingFree", "packed"]

_MAX_WINDOW_BATCHES = 200
"""Batches of a window, in which rows are sorted by length. 50 steps of the default accumulation."""
_MIN_WINDOWS = 2
"""Windows of an epoch with few rows, so that each epoch combines other rows into batches."""


@dataclass(frozen=True)
class PaddingMeasure:
    """What one pass over the rows computes."""

    tokens: int
    """All tokens that are computed, including padding."""
    padded_tokens: int
    """Those of them that are padding."""

    @property
    def share(self) -> float:
        """The fraction of the computed tokens that is padding."""
        return self.padded_tokens / max(self.tokens, 1)


def measure_lengths(rows: datasets.Dataset) -> Lengths:
    """Return the tokens of each row: of `dpo` and `kto` those of the prompt and of the longest answer."""
    import pyarrow.compute as pc

    names = [name for name in rows.column_names if name.endswith("_ids")]
    batches = rows.select_columns(names).with_format("arrow").iter(10_000)
    parts = [np.stack([pc.list_value_length(batch[name]).to_numpy() for name in names]) for batch in batches]
    by_column: Lengths = np.concatenate([np.empty((len(names), 0), np.int64), *parts], axis=1).astype(np.int64)
    if "prompt_ids" in names:
        prompt = names.index("prompt_ids")
        if len(names) == 1:
            prompts: Lengths = by_column[prompt]
            return prompts
        lengths: Lengths = by_column[prompt] + np.delete(by_column, prompt, axis=0).max(axis=0)
    else:
        lengths = by_column[names.index("input_ids")]
    return lengths


def measure_sequences(config: TrainerConfig, rows: datasets.Dataset) -> Lengths:
    """Return the tokens that the training computes for each row at most: with the answer that is generated to it, if
    the method generates answers."""
    lengths = measure_lengths(rows)
    training = config.training
    return lengths + training.effective_rollout.max_new_tokens if training.is_policy_method else lengths


def order_by_length(
    lengths: Sequence[int] | Lengths, batch_size: int, step_rows: int, seed: int, epoch: int
) -> list[int]:
    """Return the row numbers of an epoch, each once, in the order of training.

    Consecutive `batch_size` rows are a batch, and consecutive `step_rows` rows an optimizer step. The rows of a batch
    have similar lengths; the order of the batches is random. Inside a step, batches are ordered by length, so that
    ranks compute batches of similar length at the same time. The last batch may be smaller. The order does not depend
    on the number of ranks.
    """
    all_lengths = np.asarray(lengths, dtype=np.int64)
    batches = list(_form_batches(all_lengths, batch_size, np.random.default_rng((seed, epoch))))
    step_batches = step_rows // batch_size
    order: list[int] = []
    for start in range(0, len(batches), step_batches):
        step = batches[start : start + step_batches]
        step.sort(key=lambda batch: (-len(batch), -int(all_lengths[batch].max())))  # a smaller batch stays last
        order += np.concatenate(step).tolist()
    return order


def _form_batches(lengths: Lengths, batch_size: int, generator: np.random.Generator) -> Iterator[Lengths]:
    """Yield the row numbers of each batch. Only the last one may be smaller."""
    permutation = generator.permutation(len(lengths))
    window_batches = min(max(len(lengths) // batch_size // _MIN_WINDOWS, 1), _MAX_WINDOW_BATCHES)
    for start in range(0, len(lengths), window_batches * batch_size):
        window = permutation[start : start + window_batches * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        window, rest = _split_rest(window, batch_size, generator)
        yield from generator.permutation(window.reshape(-1, batch_size))
        if len(rest):
            yield rest


def _split_rest(window: Lengths, batch_size: int, generator: np.random.Generator) -> tuple[Lengths, Lengths]:
    """Take the rows of a smaller batch from sorted rows. Its place is random, so that the last batch of an epoch is as
    likely to have short rows as long ones."""
    rest_size = len(window) % batch_size
    start = int(generator.integers(len(window) // batch_size + 1)) * batch_size
    rest = slice(start, start + rest_size)
    return np.delete(window, rest), window[rest]


def measure_padding(
    lengths: Sequence[int] | Lengths, batch_size: int, batching: Batching, max_length: int, seed: int = 0
) -> PaddingMeasure:
    """Return the tokens that one pass over rows of these lengths computes, and how many are padding.

    `max_length` is the capacity of a sequence of `packed`. The seed determines an order like that of a training; for
    `byLength` it is the order of its first epoch.
    """
    sequence_lengths = np.asarray(lengths, dtype=np.int64)
    row_tokens = int(sequence_lengths.sum())
    if batching == "packed":
        sequences = packing.pack(sequence_lengths.tolist(), max_length)
        sequence_lengths = np.array([sequence_lengths[rows].sum() for rows in sequences], dtype=np.int64)
    tokens = int(measure_batches(sequence_lengths, batch_size, batching, seed).sum())
    return PaddingMeasure(tokens, tokens - row_tokens)


def measure_batches(sequence_lengths: Lengths, batch_size: int, batching: Batching, seed: int) -> Lengths:
    """Return the tokens of each batch of an epoch, including padding, of shape (batches,). Of `packed`, the lengths are
    those of the packed sequences."""
    generator = np.random.default_rng((seed, 0))
    if batching == "byLength":
        batches = list(_form_batches(sequence_lengths, batch_size, generator))
    else:
        order = generator.permutation(len(sequence_lengths))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    parts = [sequence_lengths[batch] for batch in batches]
    sizes = [part.sum() if batching == "paddingFree" else len(part) * part.max() for part in parts]
    return np.array(sizes, dtype=np.int64)
