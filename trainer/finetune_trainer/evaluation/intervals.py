"""Numbers with their intervals. Pure, and the same rows give the same interval in every run.

A mean has Student's t interval: nothing is drawn, it is right for the tails that a correction for many comparisons asks
for (a bootstrap would need tens of thousands of resamples there), and from 20 rows on it is close for skewed rows too.
A share has Wilson's, which does not say 100 % for sure when 20 of 20 were right. What is no mean of rows (BLEU, F1, a
loss per token) has the percentile bootstrap over rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from finetune_trainer.records.evaluation import Estimate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RowIndices = NDArray[np.intp]

MIN_SAMPLES = 20
"""Fewer rows say too little about rows that were not measured, so a number from them has no interval."""
CONFIDENCE = 0.95
_RESAMPLE_COUNT = 1000
_SEED = 20


def estimate_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of one value per row, in the values' unit, with Student's t interval."""
    count = len(values)
    value = math.fsum(values) / count
    if count < MIN_SAMPLES:
        return Estimate(value=value, samples=count)
    from scipy.special import stdtrit

    variance = math.fsum((sample - value) ** 2 for sample in values) / (count - 1)
    half_width = float(stdtrit(count - 1, (1 + confidence) / 2)) * math.sqrt(variance / count)
    return Estimate(value=value, low=value - half_width, high=value + half_width, samples=count)


def estimate_paired_change(base: Sequence[float], tuned: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Tuned minus base, row by row: what makes a row hard for both cancels."""
    return estimate_mean(
        [tuned_value - base_value for base_value, tuned_value in zip(base, tuned, strict=True)], confidence
    )


def estimate_proportion(successes: int, count: int) -> Estimate:
    """A share of rows, 0 to 1, with Wilson's interval."""
    if count < MIN_SAMPLES:
        return Estimate(value=successes / count, samples=count)
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=successes / count, low=float(interval.low), high=float(interval.high), samples=count)


def estimate_proportion_change(base: Sequence[bool], tuned: Sequence[bool]) -> Estimate:
    """The change of a share, from the rows that only one of both got right, as McNemar's test does.

    The interval is that of Bonett and Price (2012): one row is added to each kind, so that two models that happen to
    agree on all rows are not said to differ by exactly nothing.
    """
    count = len(base)
    gained = sum(tuned_correct and not base_correct for base_correct, tuned_correct in zip(base, tuned, strict=True))
    lost = sum(base_correct and not tuned_correct for base_correct, tuned_correct in zip(base, tuned, strict=True))
    value = (gained - lost) / count
    if count < MIN_SAMPLES:
        return Estimate(value=value, samples=count)
    from scipy.special import ndtri

    gained_share, lost_share = (gained + 1) / (count + 2), (lost + 1) / (count + 2)
    half_width = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(
        (gained_share + lost_share - (gained_share - lost_share) ** 2) / (count + 2)
    )
    return Estimate(
        value=value,
        low=max(-1.0, gained_share - lost_share - half_width),
        high=min(1.0, gained_share - lost_share + half_width),
        samples=count,
    )


def estimate_weighted_mean(sums: Sequence[float], weights: Sequence[float]) -> Estimate:
    """All sums over all weights, as a loss per token is from each row's total loss and number of tokens."""
    import numpy as np

    numerators, denominators = np.asarray(sums, dtype=float), np.asarray(weights, dtype=float)
    return bootstrap(lambda rows: float(numerators[rows].sum() / denominators[rows].sum()), len(numerators))


def bootstrap(statistic: Callable[[RowIndices], float], count: int) -> Estimate:
    """Anything computed of rows, given by their numbers. Two statistics of as many rows see the same resamples."""
    import numpy as np

    value = statistic(np.arange(count))
    if count < MIN_SAMPLES:
        return Estimate(value=value, samples=count)
    rng = np.random.default_rng(_SEED)
    resamples = [statistic(rng.integers(count, size=count)) for _ in range(_RESAMPLE_COUNT)]
    low, high = np.quantile(resamples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value=value, low=float(low), high=float(high), samples=count)


def bonferroni_confidence(comparisons: int) -> float:
    """The confidence of each of many intervals at which all of them together are right 95 % of the time.

    Bonferroni: Holm finds a little more, but gives verdicts without intervals that one could show beside them.
    """
    return 1 - (1 - CONFIDENCE) / max(1, comparisons)
