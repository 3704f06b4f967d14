"""Intervals: as wide as they have to be, the same each time, none where there is too little."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from finetune_trainer.evaluation.intervals import (
    MIN_SAMPLES,
    bonferroni_confidence,
    bootstrap,
    estimate_mean,
    estimate_paired_change,
    estimate_proportion,
    estimate_proportion_change,
    estimate_weighted_mean,
)
from finetune_trainer.evaluation.losses import measure_eval_loss, measure_perplexity
from finetune_trainer.records.evaluation import Estimate

Booleans = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=MIN_SAMPLES, max_size=60)


def contains(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def interval_width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_mean_interval_matches_textbook() -> None:
    # Of 1 to 20: mean 10.5, standard deviation 5.9161, t of 19 degrees 2.0930.
    estimate = estimate_mean([float(value) for value in range(1, 21)])
    assert estimate.value == 10.5
    assert estimate.low == pytest.approx(10.5 - 2.0930 * 5.9161 / math.sqrt(20), abs=1e-3)
    assert estimate.high == pytest.approx(10.5 + 2.0930 * 5.9161 / math.sqrt(20), abs=1e-3)
    assert estimate.samples == 20


@pytest.mark.parametrize("count", [1, 2, MIN_SAMPLES - 1])
def test_intervals_too_few_rows_have_none(count: int) -> None:
    rows, answers = [1.0] * count, [True] * count
    estimates = [
        estimate_mean(rows),
        estimate_paired_change(rows, rows),
        estimate_proportion_change(answers, answers),
        estimate_weighted_mean(rows, rows),
    ]
    assert [(estimate.low, estimate.high, estimate.samples) for estimate in estimates] == [(None, None, count)] * 4


def test_mean_interval_covers_true_mean_95_percent() -> None:
    rng = random.Random(1)
    held = sum(contains(estimate_mean([rng.expovariate(1) for _ in range(40)]), 1.0) for _ in range(400))
    assert 0.91 < held / 400 < 0.98


def test_weighted_mean_interval_covers_true_loss_95_percent() -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(30):
        tokens = rng.integers(5, 200, size=60)
        losses = tokens * rng.normal(2.0, 0.3, size=60)
        held += contains(estimate_weighted_mean(losses.tolist(), tokens.tolist()), 2.0)
    assert held >= 25


def test_paired_change_uses_row_differences() -> None:
    base = [float(value) for value in range(100)]
    tuned = [value + 0.5 + 0.01 * (-1) ** index for index, value in enumerate(base)]
    assert estimate_paired_change(base, tuned).value == pytest.approx(0.5)
    assert interval_width(estimate_paired_change(base, tuned)) < 0.01 < interval_width(estimate_mean(base))


def test_proportion_all_correct_keeps_lower_bound() -> None:
    assert estimate_proportion(20, 20).high == 1.0
    assert estimate_proportion(20, 20).low == pytest.approx(0.8389, abs=1e-4)


@pytest.mark.parametrize("count", [5, 12, 19])
def test_proportion_interval_of_few_rows_covers_95_percent_on_average(count: int) -> None:
    estimates = [estimate_proportion(successes, count) for successes in range(count + 1)]
    shares = np.linspace(0.01, 0.99, 99)
    covered = [
        sum(binom.pmf(number, count, share) for number, each in enumerate(estimates) if contains(each, share))
        for share in shares
    ]
    assert 0.95 <= np.mean(covered) < 0.97


def test_proportion_of_four_rows_has_no_interval() -> None:
    assert estimate_proportion(4, 4) == Estimate(value=1, samples=4)


CHANGES = {
    "nothing changed": (0, 0, 60, (False, True, False)),
    "as many gained as lost": (15, 15, 30, (False, True, False)),
    "many gained, few lost": (25, 3, 32, (True, False, False)),
    "few gained, many lost": (3, 25, 32, (False, False, True)),
}


@pytest.mark.parametrize(("gained", "lost", "same", "expected"), CHANGES.values(), ids=CHANGES)
def test_proportion_change_interval_shows_direction(
    gained: int, lost: int, same: int, expected: tuple[bool, bool, bool]
) -> None:
    base = [False] * gained + [True] * lost + [True] * same
    tuned = [True] * gained + [False] * lost + [True] * same
    change = estimate_proportion_change(base, tuned)
    assert change.value == pytest.approx((gained - lost) / (gained + lost + same))
    assert change.low is not None
    assert change.high is not None
    assert (change.low > 0, contains(change, 0), change.high < 0) == expected
    assert interval_width(change) > 0


@settings(max_examples=40)
@given(Booleans)
def test_proportion_change_lies_in_its_interval(rows: list[tuple[bool, bool]]) -> None:
    change = estimate_proportion_change([base for base, _ in rows], [tuned for _, tuned in rows])
    assert contains(change, change.value)
    assert -1 <= (change.low or 0) <= (change.high or 0) <= 1


def test_weighted_mean_long_rows_weigh_more() -> None:
    assert estimate_weighted_mean([10.0, 1.0], [10, 1]).value == 1.0
    assert estimate_weighted_mean([30.0, 1.0], [10, 10]).value == pytest.approx(1.55)


def test_weighted_mean_same_rows_give_same_interval() -> None:
    rows = [float(value % 7) for value in range(50)]
    ones = [1.0] * 50
    assert estimate_weighted_mean(rows, ones) == estimate_weighted_mean(rows, ones)
    assert estimate_weighted_mean(rows, ones) == estimate_mean(rows)


def test_weighted_mean_interval_matches_bootstrap() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(5, 200, size=100)
    losses = tokens * rng.gamma(4, 0.5, size=100)
    resampled = bootstrap(lambda rows: float(losses[rows].sum() / tokens[rows].sum()), 100)
    estimate = estimate_weighted_mean(losses.tolist(), tokens.tolist())
    assert estimate.value == pytest.approx(resampled.value)
    assert interval_width(estimate) == pytest.approx(interval_width(resampled), rel=0.1)


def test_resampled_statistics_share_resamples() -> None:
    rows = np.random.default_rng(3).normal(size=50)
    difference = bootstrap(lambda of: float((rows[of] + 1).mean() - rows[of].mean()), 50)
    assert difference.low == pytest.approx(1.0)
    assert difference.high == pytest.approx(1.0)


def test_corrected_more_comparisons_widen_interval() -> None:
    rows = [float(value % 7) for value in range(50)]
    assert [bonferroni_confidence(0), bonferroni_confidence(1), bonferroni_confidence(10)] == [
        0.95,
        0.95,
        pytest.approx(0.995),
    ]
    assert (
        interval_width(estimate_mean(rows))
        < interval_width(estimate_mean(rows, bonferroni_confidence(10)))
        < interval_width(estimate_mean(rows, bonferroni_confidence(100)))
    )


def test_perplexity_is_exp_of_eval_loss() -> None:
    tokens = [10, 30] * 20
    sums = [2.0 * count for count in tokens], [1.5 * count for count in tokens]
    loss, perplexity = measure_eval_loss(tokens, *sums), measure_perplexity(tokens, *sums)
    assert (loss.name, perplexity.name) == ("evalLoss", "perplexity")
    assert not loss.higher_is_better
    assert loss.base == Estimate(value=2.0, low=2.0, high=2.0, samples=40)
    assert loss.change == Estimate(value=-0.5, low=-0.5, high=-0.5, samples=40)
    assert perplexity.tuned.value == pytest.approx(math.exp(1.5))
    assert perplexity.tuned.high == pytest.approx(math.exp(1.5))
    assert perplexity.change is not None
    assert perplexity.change.value == pytest.approx(math.exp(1.5) - math.exp(2.0))
    assert perplexity.change.low == pytest.approx(math.exp(1.5) - math.exp(2.0))


def test_perplexity_few_rows_have_no_interval() -> None:
    perplexity = measure_perplexity([10], [20.0], [10.0])
    assert perplexity.tuned == Estimate(value=math.e, samples=1)


TOO_HIGH = {
    "all rows": [8000.0] * 40,
    "the tuned model's": [20.0] * 39 + [400_000.0],
    "a resample of few rows": [1.0] * 19 + [130_000.0],
}


@pytest.mark.parametrize("tuned", TOO_HIGH.values(), ids=TOO_HIGH)
def test_eval_loss_too_high_for_perplexity_is_reported(tuned: list[float]) -> None:
    tokens, base = [10] * len(tuned), [20.0] * len(tuned)
    loss = measure_eval_loss(tokens, base, tuned)
    assert loss.tuned.value == pytest.approx(sum(tuned) / sum(tokens))
    assert loss.tuned.low is not None
    with pytest.raises(OverflowError, match="nats per token is too high for a perplexity"):
        measure_perplexity(tokens, base, tuned)
