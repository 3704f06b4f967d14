"""Tests of the conditions under which overfitting is reported."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.evaluation.overfitting import judge_overfitting
from finetune_trainer.records.evaluation import Estimate, LossPoint, Measure, OverfittingResult


def make_points(losses: list[float], every: int = 10) -> list[LossPoint]:
    return [LossPoint(step=every * (index + 1), loss=loss) for index, loss in enumerate(losses)]


def make_falling_losses(count: int = 100, noise: float = 0.0) -> list[LossPoint]:
    rng = random.Random(5)
    return make_points([2.0 / (1 + index / 20) + rng.gauss(0, noise) for index in range(count)], every=1)


def make_rising_losses(count: int = 100) -> list[LossPoint]:
    return make_points([1 + index / 50 for index in range(count)], every=1)


def make_loss_measure(base: float, tuned: float, half: float, name: str = "evalLoss") -> Measure:
    change = Estimate(value=tuned - base, low=tuned - base - half, high=tuned - base + half, samples=50)
    return Measure(
        name=name,
        higher_is_better=False,
        base=Estimate(value=base, samples=50),
        tuned=Estimate(value=tuned, low=tuned - half, high=tuned + half, samples=50),
        change=change,
    )


U_SHAPE = [2.0, 1.6, 1.4, 1.3, 1.32, 1.4, 1.5, 1.6]

VERDICTS = {
    "no validation": ([], make_falling_losses(), None, "unknown"),
    "two looks": ([2.0, 1.0], make_falling_losses(), None, "unknown"),
    "falling": ([2.0, 1.5, 1.2, 1.1], make_falling_losses(), None, "none"),
    "flat": ([2.0, 1.5, 1.49, 1.5], make_falling_losses(), None, "none"),
    "1 % above the lowest": ([2.0, 1.5, 1.515], make_falling_losses(), None, "none"),
    "one temporary bump": ([2.0, 1.5, 1.9, 1.45], make_falling_losses(), None, "none"),
    "a U": (U_SHAPE, make_falling_losses(), None, "overfitting"),
    "a U with a noisy training loss": (U_SHAPE, make_falling_losses(noise=0.1), None, "overfitting"),
    "a U within the interval": (U_SHAPE, make_falling_losses(), make_loss_measure(2.0, 1.6, half=0.35), "none"),
    "a U beyond the interval": (U_SHAPE, make_falling_losses(), make_loss_measure(2.0, 1.6, half=0.05), "overfitting"),
    "a U without training losses": (U_SHAPE, [], None, "overfitting"),
    "both rise": (U_SHAPE, make_rising_losses(), None, "none"),
    "both rise after a long fall": (U_SHAPE, make_points([*range(50, 10, -1), *range(10, 50)], every=1), None, "none"),
    "memorized before validation rose": (U_SHAPE, make_points([0.01] * 100, every=1), None, "overfitting"),
}


@pytest.mark.parametrize(("validation", "training", "final", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_overfitting_loss_curves_give_verdict(
    validation: list[float], training: list[LossPoint], final: Measure | None, verdict: str
) -> None:
    assert judge_overfitting(training, make_points(validation), None, final, None).verdict == verdict


def test_overfitting_message_names_step_and_advice() -> None:
    result = judge_overfitting(
        make_falling_losses(), make_points(U_SHAPE), 0.4, make_loss_measure(2.0, 1.62, half=0.05), None
    )
    assert (result.best_step, result.opened_at, result.gap) == (40, 60, pytest.approx(1.22))
    for words in ("1.3 after step 40", "1.6 after step 80", "fewer epochs", "earlyStopping", "1.22 above the training"):
        assert words in result.message


def test_overfitting_both_losses_rising_blames_learning_rate() -> None:
    result = judge_overfitting(make_rising_losses(), make_points(U_SHAPE), None, None, None)
    assert "learningRate" in result.message
    assert result.opened_at is None


UNKNOWN = {"none at all": ([], "dataset.validation"), "two": ([2.0, 1.9], "was measured 2 times")}


@pytest.mark.parametrize(("validation", "expected_message"), UNKNOWN.values(), ids=UNKNOWN)
def test_overfitting_unknown_verdict_gives_reason(validation: list[float], expected_message: str) -> None:
    assert (
        expected_message in judge_overfitting(make_falling_losses(), make_points(validation), None, None, None).message
    )


GAPS = {
    "of the final measures": (0.5, make_loss_measure(2, 1.1, 0.1), pytest.approx(0.6)),
    "without a final measure, of the last evaluation": (0.5, None, pytest.approx(0.7)),
    "below the training loss": (1.5, None, pytest.approx(-0.3)),
    "no training loss": (None, make_loss_measure(2, 1.1, 0.1), None),
}


@pytest.mark.parametrize(("training", "final", "gap"), GAPS.values(), ids=GAPS)
def test_overfitting_gap_is_validation_minus_training_loss(
    training: float | None, final: Measure | None, gap: float | None
) -> None:
    result = judge_overfitting([], make_points([2.0, 1.5, 1.2]), training, final, None)
    assert result.gap == gap
    assert ("the training loss." in result.message) == (gap is not None)


FORGETTING = {
    "harder": (make_loss_measure(10, 14, 1, "perplexity"), True),
    "perhaps harder": (make_loss_measure(10, 10.5, 1, "perplexity"), False),
    "certainly harder, by too little to matter": (make_loss_measure(57.19, 59.53, 1, "perplexity"), False),
    "easier": (make_loss_measure(10, 8, 1, "perplexity"), False),
}


@pytest.mark.parametrize(("measured", "is_reported"), FORGETTING.values(), ids=FORGETTING)
def test_overfitting_forgetting_is_reported_when_clear(measured: Measure, is_reported: bool) -> None:
    result = judge_overfitting([], make_points([2.0, 1.5, 1.2]), None, None, measured)
    assert result.forgetting == measured
    assert ("Perplexity of general text rose from 10 to 14" in result.message) == is_reported


Losses = st.floats(min_value=0.01, max_value=20)


@given(st.lists(Losses, min_size=3, max_size=30), st.lists(Losses, max_size=50))
def test_overfitting_falling_validation_loss_gives_none(validation: list[float], training: list[float]) -> None:
    result = judge_overfitting(
        make_points(training, every=1), make_points(sorted(validation, reverse=True)), None, None, None
    )
    assert result.verdict == "none"


@given(
    st.integers(min_value=1, max_value=10),
    st.integers(min_value=1, max_value=10),
    st.floats(min_value=0.06, max_value=2),
    st.randoms(use_true_random=False),
)
def test_overfitting_planted_turning_point_is_found(before: int, after: int, rise: float, rng: random.Random) -> None:
    down = [1 + (before - index) * 0.1 for index in range(before)]
    up = [1 + rise * (index + 1) / after for index in range(after)]
    noisy = [loss * (1 + rng.uniform(-0.01, 0.01)) for loss in [*down, 1.0, *up]]
    result: OverfittingResult = judge_overfitting(
        make_falling_losses(300, noise=0.05), make_points(noisy), None, None, None
    )
    assert result.verdict == "overfitting"
    assert result.best_step is not None
    assert result.opened_at is not None
    assert result.best_step < result.opened_at <= 10 * len(noisy)
