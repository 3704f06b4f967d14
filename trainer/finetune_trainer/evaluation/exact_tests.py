"""Exact paired tests of a change on few rows, where an interval would not be accurate.

All are permutation tests of the same hypothesis: the results of a row are equally likely under either model, so that
exchanging them does not matter. The p-value is the probability of a change at least as large, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    SwappedRows = NDArray[np.bool_]

SIGNIFICANCE = 0.05
"""Highest p-value of a change that is not attributed to chance."""
MIN_TEST_SAMPLES = 6
"""Minimum number of rows for a decision. The lowest possible p-value of five rows is 2 / 2**5 = 0.0625."""
_MAX_ASSIGNMENTS = 4096
"""Maximum number of assignments of the results to the models that a swap test computes: all of 13 rows."""
_RANDOM_ASSIGNMENTS = 4999
_SEED = 20
_ROUNDING_TOLERANCE = 1e-12
"""Relative tolerance within which two changes count as equal."""


def compute_mcnemar_p_value(base: Sequence[bool], tuned: Sequence[bool]) -> float:
    """Return the p-value of the change of a proportion: McNemar's exact test on the rows where the models differ."""
    from scipy.stats import binomtest

    pairs = list(zip(base, tuned, strict=True))
    gained = sum(tuned_correct and not base_correct for base_correct, tuned_correct in pairs)
    lost = sum(base_correct and not tuned_correct for base_correct, tuned_correct in pairs)
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def compute_sign_flip_p_value(changes: Sequence[float]) -> float:
    """Return the p-value of a sum, or mean, of one change per row, for at most 20 rows.

    `scipy.stats.permutation_test` computes the same, but needs seconds for 19 rows.
    """
    import numpy as np

    # Flipping all signs gives the same absolute sum, so the first one can stay.
    sums = np.array([changes[0]])
    for change in changes[1:]:
        sums = np.concatenate((sums + change, sums - change))
    return float(np.mean(np.abs(sums) >= abs(sum(changes)) - _ROUNDING_TOLERANCE * sum(map(abs, changes))))


def compute_swap_p_value(compute_change: Callable[[SwappedRows], float], count: int) -> float:
    """Return the p-value of the change of a statistic of all rows together, such as BLEU.

    `compute_change` returns the change if the results of the marked rows are exchanged between the models. It gets a
    mask of shape (count,). Up to 13 rows the test is exact. From 14 rows on it compares with 4999 random assignments,
    which are the same in every run.
    """
    import numpy as np

    observed = compute_change(np.zeros(count, dtype=np.bool_))
    limit = abs(observed) - _ROUNDING_TOLERANCE * abs(observed)
    if 2 ** (count - 1) <= _MAX_ASSIGNMENTS:
        return float(np.mean([abs(compute_change(mask)) >= limit for mask in _list_assignments(count)]))
    masks = np.random.default_rng(_SEED).integers(2, size=(_RANDOM_ASSIGNMENTS, count), dtype=np.bool_)
    extreme_count = sum(abs(compute_change(mask)) >= limit for mask in masks)
    return (extreme_count + 1) / (_RANDOM_ASSIGNMENTS + 1)


def _list_assignments(count: int) -> Iterator[SwappedRows]:
    """Iterate over the exchanges of rows. The last row always stays: exchanging all rows only changes the sign."""
    import numpy as np

    for number in range(2 ** (count - 1)):
        yield (number >> np.arange(count)) & 1 == 1
