"""Rows set aside for validation: whole groups, chosen by a seed."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MORE_GROUPS = (
    "if they share a long instruction, move it to a system prompt, which is not compared, or set "
    "dataset.preparation.nearThreshold to 1"
)
"""What to do when too many rows count as alike."""


def choose(keys: array[int], fraction: float, seed: int) -> NDArray[np.int64]:
    """Numbers of the rows to set aside: as near below `fraction` as whole groups of one key allow, at least one row.

    The same keys and seed choose the same rows. Raises `DATA_INVALID` if all rows are of one group.
    """
    import numpy as np

    groups, sizes = np.unique(np.frombuffer(keys, dtype=np.uint64), return_counts=True)
    if len(groups) < 2:
        raise TrainerError(
            Reason.DATA_INVALID,
            f"dataset.validation.fraction: all {len(keys)} rows resemble each other or have one prompt, so none can be "
            f"set aside; {MORE_GROUPS}, give validation.sources instead, or remove validation",
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    taken = _fitting(sizes[order], max(1, round(fraction * len(keys))))
    chosen = groups[order[taken]] if taken.any() else groups[[np.argmin(sizes)]]
    return np.flatnonzero(np.isin(np.frombuffer(keys, dtype=np.uint64), chosen)).astype(np.int64)


def _fitting(sizes: NDArray[np.int64], room: int) -> NDArray[np.bool_]:
    """Which of the groups, taken in this order, fit into so many rows; one that does not is passed over."""
    import numpy as np

    taken = np.zeros(len(sizes), dtype=np.bool_)
    for index, size in enumerate(sizes.tolist()):
        if size <= room:
            taken[index], room = True, room - size
        if not room:
            break
    return taken
