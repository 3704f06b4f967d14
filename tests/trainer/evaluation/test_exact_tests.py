"""Exact tests agree with scipy, are calibrated on models that do not differ, and find clear changes on few rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import permutation_test

from finetune_trainer.evaluation.decisions import change_direction
from finetune_trainer.evaluation.exact_tests import (
    compute_mcnemar_p_value,
    compute_sign_flip_p_value,
    compute_swap_p_value,
)
from finetune_trainer.evaluation.paired_measures import (
    measure_mean,
    measure_share,
    measure_statistic,
)
from finetune_trainer.evaluation.task_metrics import measure_task
from finetune_trainer.records.evaluation import Measure

Floats = NDArray[np.float64]


@pytest.mark.parametrize("count", [2, 6, 12])
def test_sign_flip_p_value_matches_scipy(count: int) -> None:
    changes = np.random.default_rng(count).normal(0.5, 1, count)
    expected = permutation_test((changes,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf)
    assert compute_sign_flip_p_value(changes.tolist()) == pytest.approx(expected.pvalue, abs=1e-12)


def test_sign_flip_equal_changes_count_despite_rounding() -> None:
    # Of the 16 assignments of signs, ten give a sum of at least 0.2 or at most -0.2. As floats, some are 0.2 - 3e-17.
    assert compute_sign_flip_p_value([0.1, 0.1, 0.1, -0.1]) == 10 / 16
    assert compute_sign_flip_p_value([1.0, 1.0, 1.0, -1.0]) == 10 / 16
    assert compute_sign_flip_p_value([0.0, 0.0, 0.0]) == 1


DISCORDANT = {
    "none": (0, 0, 1.0),
    "one": (1, 0, 1.0),
    "five": (5, 0, 0.0625),
    "six": (6, 0, 0.03125),
    "in both directions": (7, 2, None),
}


@pytest.mark.parametrize(("gained", "lost", "expected"), DISCORDANT.values(), ids=DISCORDANT)
def test_mcnemar_p_value_matches_sign_flips(gained: int, lost: int, expected: float | None) -> None:
    base = [False] * gained + [True] * lost + [True] * 3
    tuned = [True] * gained + [False] * lost + [True] * 3
    p_value = compute_mcnemar_p_value(base, tuned)
    assert p_value == pytest.approx(compute_sign_flip_p_value([1.0] * gained + [-1.0] * lost + [0.0] * 3))
    assert expected is None or p_value == expected


def make_swap_test(base: Floats, tuned: Floats, statistic: Callable[[Floats], float]) -> float:
    def compute_change(swapped: NDArray[np.bool_]) -> float:
        return statistic(np.where(swapped, base, tuned)) - statistic(np.where(swapped, tuned, base))

    return compute_swap_p_value(compute_change, len(base))


@pytest.mark.parametrize(("count", "tolerance"), [(4, 1e-12), (9, 1e-12), (13, 1e-12), (18, 0.02)])
def test_swap_p_value_of_mean_matches_sign_flips(count: int, tolerance: float) -> None:
    base, tuned = np.random.default_rng(count).normal([[0], [0.4]], 1, (2, count))
    expected = compute_sign_flip_p_value((tuned - base).tolist())
    assert make_swap_test(base, tuned, lambda rows: float(rows.mean())) == pytest.approx(expected, abs=tolerance)


def test_swap_p_value_of_median_matches_scipy() -> None:
    base, tuned = np.random.default_rng(4).normal([[0], [1]], 1, (2, 9))
    expected = permutation_test(
        (tuned, base),
        lambda first, second: np.median(first) - np.median(second),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    p_value = make_swap_test(base, tuned, lambda rows: float(np.median(rows)))
    assert p_value == pytest.approx(expected.pvalue, abs=1e-12)


def test_swap_p_value_of_many_rows_is_the_same_each_time() -> None:
    base, tuned = np.random.default_rng(5).normal(size=(2, 18))
    first, second = (make_swap_test(base, tuned, lambda rows: float(np.median(rows))) for _ in range(2))
    assert first == second


def measure_random_share(rng: np.random.Generator, count: int) -> Measure:
    base, tuned = (rng.random((2, count)) < 0.5).tolist()
    return measure_share("accuracy", base, tuned)


def measure_random_mean(rng: np.random.Generator, count: int) -> Measure:
    base, tuned = rng.exponential(size=(2, count)).tolist()
    return measure_mean("rouge1", base, tuned)


def measure_random_statistic(rng: np.random.Generator, count: int) -> Measure:
    base, tuned = rng.exponential(size=(2, count, 1))
    return measure_statistic("spread", lambda rows: float(rows.max() - rows.min()), base, tuned)


RANDOM_MEASURES = {
    "share of 6": (measure_random_share, 6, 200),
    "share of 18": (measure_random_share, 18, 200),
    "mean of 6": (measure_random_mean, 6, 200),
    "mean of 10": (measure_random_mean, 10, 200),
    "mean of 18": (measure_random_mean, 18, 200),
    "statistic of 6": (measure_random_statistic, 6, 400),
    "statistic of 10": (measure_random_statistic, 10, 60),
}


@pytest.mark.parametrize(("make", "count", "repetitions"), RANDOM_MEASURES.values(), ids=RANDOM_MEASURES)
def test_direction_equal_models_rarely_differ(
    make: Callable[[np.random.Generator, int], Measure], count: int, repetitions: int
) -> None:
    rng = np.random.default_rng(1)
    directions = [change_direction(make(rng, count)) for _ in range(repetitions)]
    false_positives = sum(direction in ("better", "worse") for direction in directions)
    # At most 5 % are expected; a binomial variable exceeds this limit in 1 of 1000 cases.
    assert false_positives <= 0.05 * repetitions + 3.1 * (0.05 * 0.95 * repetitions) ** 0.5


TASKS = ["classification", "chat", "translation", "summarization"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [6, 10, 18])
def test_direction_all_answers_become_correct_is_better(task: str, count: int) -> None:
    references = [f"The answer to this question is {'yes' if row % 2 else 'no'}" for row in range(count)]
    measures, _ = measure_task(task, references, ["wrong"] * count, references)  # type: ignore[arg-type]
    assert {change_direction(measure) for measure in measures} == {"better"}
    assert {measure.p_value for measure in measures} <= {2 / 2**count, 1 / 5000}


def test_direction_five_rows_are_too_few() -> None:
    measures, _ = measure_task("chat", ["yes"] * 5, ["no"] * 5, ["yes"] * 5)
    assert {change_direction(measure) for measure in measures} == {"few"}


def test_measures_with_intervals_have_no_p_value() -> None:
    for task in TASKS:
        measures, _ = measure_task(task, ["yes it is so"] * 20, ["no"] * 20, ["yes it is so"] * 20)  # type: ignore[arg-type]
        assert {measure.p_value for measure in measures} == {None}
