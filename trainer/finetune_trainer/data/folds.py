"""The parts that cross-validation divides the rows into: whole groups, alike in size, chosen by a seed."""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.splits import MORE_GROUPS
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Folds:
    """Which part each row to train on is in. Of rows that were made from others no loss is measured."""

    count: int
    parts: NDArray[np.int8]
    made: NDArray[np.bool_]

    def rest(self, part: int) -> NDArray[np.int64]:
        """Numbers of the rows that are trained on while this part, from 0, is left out."""
        import numpy as np

        return np.flatnonzero(self.parts != part)

    def left_out(self, part: int) -> NDArray[np.int64]:
        """Numbers of the part's rows that stand in the data."""
        import numpy as np

        return np.flatnonzero((self.parts == part) & ~self.made)

    @property
    def digest(self) -> str:
        """Of the division: losses of another one are no part of this one's."""
        return hashlib.sha256(self.parts.tobytes() + self.made.tobytes()).hexdigest()


def divide(keys: NDArray[np.uint64], made: NDArray[np.bool_], count: int, seed: int) -> Folds:
    """Rows of one key to one of `count` parts; of rows that were not made from others, two parts differ in number at
    most by the largest group's.

    The same keys and seed make the same parts. Raises `DATA_INVALID` if there are fewer groups than parts.
    """
    import numpy as np

    groups, numbers = np.unique(keys, return_inverse=True)
    sizes = np.bincount(numbers[~made], minlength=len(groups))
    if (sizes > 0).sum() < count:
        raise _too_few(int((~made).sum()), int((sizes > 0).sum()), count)
    order = np.random.default_rng(seed).permutation(len(groups))
    order = order[np.argsort(-sizes[order], kind="stable")]
    part_of = np.empty(len(groups), dtype=np.int8)
    part_of[order] = _parts(sizes[order].tolist(), count)
    return Folds(count, part_of[numbers], made)


def _parts(sizes: list[int], count: int) -> list[int]:
    """By group, the largest first: the part that had the fewest rows then."""
    filled = [(0, part) for part in range(count)]
    parts = []
    for size in sizes:
        rows, part = filled[0]
        heapq.heapreplace(filled, (rows + size, part))
        parts.append(part)
    return parts


def _too_few(rows: int, groups: int, count: int) -> TrainerError:
    remedy = f"lower it to {groups} or less" if groups > 1 else "remove it"
    found = f"{groups} group{'' if groups == 1 else 's'} of rows that resemble each other or have one prompt"
    message = (
        f"training.crossValidation.folds is {count}, but the {rows} rows to train on are only {found}; {remedy}, "
        f"or add rows; {MORE_GROUPS}"
    )
    return TrainerError(Reason.DATA_INVALID, message)
