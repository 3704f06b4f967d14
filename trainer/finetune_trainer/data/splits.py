"""Validation split: complete groups of rows, chosen by a seed."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUPING_HINT = (
    "if the rows share a long instruction, move it to a system prompt, which is not compared, or set "
    "dataset.preparation.nearThreshold to 1"
)
"""Advice for data with too many similar rows."""


def choose_validation_rows(group_keys: array[int], fraction: float, seed: int) -> NDArray[np.int64]:
    """Return the numbers of the rows to hold out: at most `fraction` of them, in complete groups, but at least one row.

    The same keys and seed choose the same rows. Raises `DATA_INVALID` if all rows belong to one group.
    """
    import numpy as np

    groups, sizes = np.unique(np.frombuffer(group_keys, dtype=np.uint64), return_counts=True)
    if len(groups) < 2:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"dataset.validation.fraction: all {len(group_keys)} rows are similar or have the same prompt, so none can "
            f"be held out for validation; {GROUPING_HINT}, set validation.sources instead, or remove validation",
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    selected = _select_fitting_groups(sizes[order], max(1, round(fraction * len(group_keys))))
    chosen_groups = groups[order[selected]] if selected.any() else groups[[np.argmin(sizes)]]
    return np.flatnonzero(np.isin(np.frombuffer(group_keys, dtype=np.uint64), chosen_groups)).astype(np.int64)


def _select_fitting_groups(sizes: NDArray[np.int64], max_rows: int) -> NDArray[np.bool_]:
    """Return a mask of the groups that fit into `max_rows` in this order. A group that does not fit is skipped."""
    import numpy as np

    selected = np.zeros(len(sizes), dtype=np.bool_)
    for index, size in enumerate(sizes.tolist()):
        if size <= max_rows:
            selected[index], max_rows = True, max_rows - size
        if not max_rows:
            break
    return selected
