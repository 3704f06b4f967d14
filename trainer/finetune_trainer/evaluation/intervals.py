"""Estimates with confidence intervals, which are the same in every run for the same rows.

- A mean has Student's t interval. It is accurate in the tails that a correction for many comparisons needs, where a
  bootstrap would need tens of thousands of resamples, and from 20 rows on also for skewed values. A weighted mean, such
  as a loss per token, has the same interval of its linear approximation.
- A proportion has Wilson's interval, which has a width above zero even if all rows are correct. On average over all
  proportions it contains the true one in 95 % of the cases, also for five rows.
- Other statistics (BLEU, F1, a perplexity) have the percentile bootstrap over rows.
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
"""Minimum number of rows for an interval of a mean or a change. The intervals of fewer rows are not accurate; exact
tests decide about their changes."""
MIN_PROPORTION_SAMPLES = 5
"""Minimum number of rows for the interval of a proportion."""
CONFIDENCE = 0.95
_RESAMPLE_COUNT = 1000
_SEED = 20


def estimate_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of one value per row, in the unit of the values, with Student's t interval."""
    return estimate_weighted_mean(values, [1] * len(values), confidence)


def estimate_paired_change(base: Sequence[float], tuned: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean of tuned minus base by row, which cancels the difficulty of the rows."""
    return estimate_mean(
        [tuned_value - base_value for base_value, tuned_value in zip(base, tuned, strict=True)], confidence
    )


def estimate_proportion(successes: int, count: int) -> Estimate:
    """Return a proportion of rows, between 0 and 1, with Wilson's interval."""
    if count < MIN_PROPORTION_SAMPLES:
        return Estimate(value=successes / count, samples=count)
    from scipy.stats import binomtest

    interval = binomtest(successes, count).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(value=successes / count, low=float(interval.low), high=float(interval.high), samples=count)


def estimate_proportion_change(base: Sequence[bool], tuned: Sequence[bool]) -> Estimate:
    """Return the change of a proportion, from the rows where only one model is correct, as in McNemar's test.

    The interval is that of Bonett and Price (2012, https://doi.org/10.3102/1076998611411915): one row is added to each
    kind, so that the interval has a width above zero even if both models agree on all rows.
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


def estimate_weighted_mean(sums: Sequence[float], weights: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the sum of `sums` divided by the sum of `weights`, such as the loss per token of rows.

    The interval is that of a ratio of two means (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    count, total_weight = len(sums), math.fsum(weights)
    value = math.fsum(sums) / total_weight
    if count < MIN_SAMPLES:
        return Estimate(value=value, samples=count)
    from scipy.special import stdtrit

    # Not scipy.stats.t.interval, which returns NaN for equal values.
    residuals = (row_sum - value * weight for row_sum, weight in zip(sums, weights, strict=True))
    deviation = math.sqrt(math.fsum(residual**2 for residual in residuals) * count / (count - 1)) / total_weight
    half_width = float(stdtrit(count - 1, (1 + confidence) / 2)) * deviation
    return Estimate(value=value, low=value - half_width, high=value + half_width, samples=count)


def bootstrap(statistic: Callable[[RowIndices], float], count: int) -> Estimate:
    """Return a statistic of rows, which are given by their numbers, with its percentile interval.

    Statistics of the same number of rows use the same resamples. `scipy.stats.bootstrap` draws the same ones, but is
    slower and differs in the last digit.
    """
    import numpy as np

    value = statistic(np.arange(count))
    if count < MIN_SAMPLES:
        return Estimate(value=value, samples=count)
    rng = np.random.default_rng(_SEED)
    resamples = [statistic(rng.integers(count, size=count)) for _ in range(_RESAMPLE_COUNT)]
    low, high = np.quantile(resamples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value=value, low=float(low), high=float(high), samples=count)


def bonferroni_confidence(comparisons: int) -> float:
    """Return the confidence of each of several intervals that are all correct with a probability of 95 %.

    This is Bonferroni's correction. Holm's has slightly more power, but no matching intervals.
    """
    return 1 - (1 - CONFIDENCE) / max(1, comparisons)
