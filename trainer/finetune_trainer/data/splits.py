"""Rows set aside for validation: whole groups, chosen by a seed."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUPING_HINT = (
    "if they share a long instruction, move it to a system prompt, which is not compared, or set "
    "dataset.preparation.nearThreshold to 1"
)
"""What to do when too many rows count as alike."""


def choose_validation_rows(group_keys: array[int], fraction: float, seed: int) -> NDArray[np.int64]:
    """Numbers of the rows to set aside: as near below `fraction` as whole groups of one key allow, at least one row.

    The same keys and seed choose the same rows. Raises `DATA_INVALID` if all rows are of one group.
    """
    import numpy as np

    groups, sizes = np.unique(np.frombuffer(group_keys, dtype=np.uint64), return_counts=True)
    if len(groups) < 2:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"dataset.validation.fraction: all {len(group_keys)} rows resemble each other or have one prompt, "
            "so none can be "
            f"set aside; {GROUPING_HINT}, give validation.sources instead, or remove validation",
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    selected = _select_fitting_groups(sizes[order], max(1, round(fraction * len(group_keys))))
    chosen_groups = groups[order[selected]] if selected.any() else groups[[np.argmin(sizes)]]
    return np.flatnonzero(np.isin(np.frombuffer(group_keys, dtype=np.uint64), chosen_groups)).astype(np.int64)


def _select_fitting_groups(sizes: NDArray[np.int64], max_rows: int) -> NDArray[np.bool_]:
    """Which of the groups, taken in this order, fit into so many rows; one that does not is passed over."""
    import numpy as np

    selected = np.zeros(len(sizes), dtype=np.bool_)
    for index, size in enumerate(sizes.tolist()):
        if size <= max_rows:
            selected[index], max_rows = True, max_rows - size
        if not max_rows:
            break
    return selected
