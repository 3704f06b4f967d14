"""The parts that cross-validation divides the rows into: whole groups, alike in size, chosen by a seed."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.splits import GROUPING_HINT
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Folds:
    """Which part each row to train on is in. Of rows that were made from others no loss is measured."""

    fold_count: int
    row_folds: NDArray[np.int8]
    augmented: NDArray[np.bool_]

    def select_training_rows(self, fold: int) -> NDArray[np.int64]:
        """Numbers of the rows that are trained on while this part, from 0, is left out."""
        import numpy as np

        return np.flatnonzero(self.row_folds != fold)

    def select_held_out_rows(self, fold: int) -> NDArray[np.int64]:
        """Numbers of the part's rows that stand in the data."""
        import numpy as np

        return np.flatnonzero((self.row_folds == fold) & ~self.augmented)

    @property
    def digest(self) -> str:
        """Of the division: losses of another one are no part of this one's."""
        return hashlib.sha256(self.row_folds.tobytes() + self.augmented.tobytes()).hexdigest()


def assign_folds(group_keys: NDArray[np.uint64], augmented: NDArray[np.bool_], fold_count: int, seed: int) -> Folds:
    """Rows of one key to one of `count` parts; of rows that were not made from others, two parts differ in number at
    most by the largest group's.

    The same keys and seed make the same parts. Raises `DATA_INVALID` if there are fewer groups than parts.
    """
    import numpy as np

    groups, row_groups = np.unique(group_keys, return_inverse=True)
    sizes = np.bincount(row_groups[~augmented], minlength=len(groups))
    if (sizes > 0).sum() < fold_count:
        raise _build_too_few_groups_error(int((~augmented).sum()), int((sizes > 0).sum()), fold_count)
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(-sizes[order], kind="stable")]
    group_folds = np.empty(len(groups), dtype=np.int8)
    group_folds[order] = _assign_groups(sizes[order].tolist(), fold_count)
    return Folds(fold_count, group_folds[row_groups], augmented)


def _assign_groups(sizes: list[int], fold_count: int) -> list[int]:
    """By group, the largest first: the part that had the fewest rows then."""
    fold_heap = [(0, fold) for fold in range(fold_count)]
    group_folds = []
    for size in sizes:
        row_count, part = fold_heap[0]
        heapq.heapreplace(fold_heap, (row_count + size, part))
        group_folds.append(part)
    return group_folds


def _build_too_few_groups_error(row_count: int, group_count: int, fold_count: int) -> TrainerError:
    remedy = f"lower it to {group_count} or less" if group_count > 1 else "remove it"
    group_text = (
        f"{group_count} group{'' if group_count == 1 else 's'} of rows that resemble each other or have one prompt"
    )
    message = (
        f"training.crossValidation.folds is {fold_count}, but the {row_count} rows to train on are only "
        f"{group_text}; {remedy}, "
        f"or add rows; {GROUPING_HINT}"
    )
    return TrainerError(Reason.DATA_INVALID, message)
