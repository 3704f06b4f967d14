"""Folds of cross-validation: complete groups of rows, assigned by a seed to folds of similar size."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.splits import GROUPING_HINT
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import pluralize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Folds:
    """Assignment of the training rows to folds. The loss is not measured on augmented rows."""

    fold_count: int
    row_folds: NDArray[np.int8]
    """Fold of each row, in shape (rows,)."""
    augmented: NDArray[np.bool_]
    """Whether augmentation made each row, in shape (rows,)."""

    def select_training_rows(self, fold: int) -> NDArray[np.int64]:
        """Return the numbers of the rows to train on while this fold, counted from 0, is held out."""
        import numpy as np

        return np.flatnonzero(self.row_folds != fold)

    def select_held_out_rows(self, fold: int) -> NDArray[np.int64]:
        """Return the numbers of the rows of the fold that are not augmented."""
        import numpy as np

        return np.flatnonzero((self.row_folds == fold) & ~self.augmented)

    @property
    def digest(self) -> str:
        """Digest of the assignment. Losses of different assignments must not be mixed."""
        return hashlib.sha256(self.row_folds.tobytes() + self.augmented.tobytes()).hexdigest()


def assign_folds(group_keys: NDArray[np.uint64], augmented: NDArray[np.bool_], fold_count: int, seed: int) -> Folds:
    """Assign all rows of one group key to the same fold.

    The sizes of two folds, without augmented rows, differ by at most the size of the largest group. The same keys and
    seed give the same folds. Raises `DATA_INVALID` if there are fewer groups than folds.
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
    """Return the fold of each group. Groups come largest first; each goes to the fold with the fewest rows so far."""
    fold_heap = [(0, fold) for fold in range(fold_count)]
    group_folds = []
    for size in sizes:
        row_count, part = fold_heap[0]
        heapq.heapreplace(fold_heap, (row_count + size, part))
        group_folds.append(part)
    return group_folds


def _build_too_few_groups_error(row_count: int, group_count: int, fold_count: int) -> TrainerError:
    remedy = f"lower it to {group_count} or less" if group_count > 1 else "remove it"
    group_text = f"{pluralize(group_count, 'group')} of rows that are similar or have the same prompt"
    message = (
        f"training.crossValidation.folds is {fold_count}, but the {row_count} training rows form only "
        f"{group_text}; {remedy}, "
        f"or add rows; {GROUPING_HINT}"
    )
    return TrainerError(Reason.DATA_INVALID, message)
