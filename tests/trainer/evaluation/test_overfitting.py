"""Tests of the conditions under which overfitting is reported."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.evaluation.overfitting import judge_overfitting
from finetune_trainer.records.evaluation import Estimate, LossPoint, Measure, OverfittingResult
from finetune_trainer.training.row_losses import RowLossHistory


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
    "no validation": ([], make_falling_losses(), "unknown"),
    "two looks": ([2.0, 1.0], make_falling_losses(), "unknown"),
    "falling": ([2.0, 1.5, 1.2, 1.1], make_falling_losses(), "none"),
    "flat": ([2.0, 1.5, 1.49, 1.5], make_falling_losses(), "none"),
    "1 % above the lowest": ([2.0, 1.5, 1.515], make_falling_losses(), "none"),
    "one temporary bump": ([2.0, 1.5, 1.9, 1.45], make_falling_losses(), "none"),
    "a U": (U_SHAPE, make_falling_losses(), "overfitting"),
    "a U with a noisy training loss": (U_SHAPE, make_falling_losses(noise=0.1), "overfitting"),
    "a U without training losses": (U_SHAPE, [], "overfitting"),
    "both rise": (U_SHAPE, make_rising_losses(), "none"),
    "both rise after a long fall": (U_SHAPE, make_points([*range(50, 10, -1), *range(10, 50)], every=1), "none"),
    "memorized before validation rose": (U_SHAPE, make_points([0.01] * 100, every=1), "overfitting"),
}


@pytest.mark.parametrize(("validation", "training", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_overfitting_loss_curves_without_rows_give_verdict(
    validation: list[float], training: list[LossPoint], verdict: str
) -> None:
    assert judge_overfitting(training, make_points(validation), None, None).verdict == verdict


@dataclass(frozen=True)
class NoisyRows:
    """Losses of validation rows that differ in length and difficulty, and fluctuate between evaluations."""

    count: int
    noise: float = 0.0
    """Standard deviation of a row's loss per token between evaluations."""
    seed: int = 0

    def judge(self, losses: list[float]) -> OverfittingResult:
        """Judge a training whose validation loss is, but for the noise, `losses`."""
        rng = np.random.default_rng(self.seed)
        tokens, difficulty = rng.integers(10, 200, self.count), rng.gamma(8, 1 / 8, self.count)
        points, history = [], RowLossHistory()
        for step, loss in zip(range(10, 10 * len(losses) + 1, 10), losses, strict=True):
            sums = tokens * (loss * difficulty + rng.normal(0, self.noise, self.count))
            history.record(step, sums.tolist(), tokens.tolist())
            points.append(LossPoint(step=step, loss=float(sums.sum() / tokens.sum())))
        return judge_overfitting(make_falling_losses(), points, None, None, history)


RISE_OF_10_PERCENT = [2.0, 1.5, 1.0, 1.05, 1.1]
ROW_VERDICTS = {
    "40 rows, each 10 % above the best": (NoisyRows(40), RISE_OF_10_PERCENT, "overfitting"),
    "40 rows with some noise": (NoisyRows(40, noise=0.1), RISE_OF_10_PERCENT, "overfitting"),
    "40 rows with much noise": (NoisyRows(40, noise=0.3), RISE_OF_10_PERCENT, "none"),
    "40 rows, each 1 % above the best": (NoisyRows(40), [2.0, 1.5, 1.0, 1.005, 1.01], "none"),
    "12 rows, each 10 % above the best": (NoisyRows(12), RISE_OF_10_PERCENT, "overfitting"),
    "12 rows with much noise": (NoisyRows(12, noise=0.3), RISE_OF_10_PERCENT, "none"),
    "5 rows, each 10 % above the best": (NoisyRows(5), RISE_OF_10_PERCENT, "unknown"),
    "5 rows, still falling": (NoisyRows(5), [2.0, 1.5, 1.0], "none"),
}


@pytest.mark.parametrize(("rows", "losses", "verdict"), ROW_VERDICTS.values(), ids=ROW_VERDICTS)
def test_overfitting_rise_of_rows_gives_verdict(rows: NoisyRows, losses: list[float], verdict: str) -> None:
    assert rows.judge(losses).verdict == verdict


def test_overfitting_change_is_that_from_best_to_last_evaluation() -> None:
    result = NoisyRows(40, noise=0.05).judge(RISE_OF_10_PERCENT)
    assert result.change
    assert result.change.value == pytest.approx(0.1, abs=0.05)
    assert result.change.low
    assert 0 < result.change.low < result.change.value
    assert result.p_value is None
    few = NoisyRows(12).judge(RISE_OF_10_PERCENT)
    # Each of the 12 rows rose; the last evaluation is compared with four earlier ones.
    assert few.p_value == pytest.approx(4 * 2 / 2**12)
    assert NoisyRows(12).judge([2.0, 1.5, 1.0]).change is None, "the last evaluation is the best one"


@pytest.mark.parametrize(("count", "evaluations"), [(12, 4), (40, 10)])
def test_overfitting_flat_noisy_losses_rarely_give_it(count: int, evaluations: int) -> None:
    verdicts = [NoisyRows(count, 0.3, seed).judge([1.0] * evaluations).verdict for seed in range(100)]
    assert verdicts.count("overfitting") <= 8


UNEXPLAINED = {
    "chance": (NoisyRows(40, noise=0.3), "which may be due to chance on 40 rows"),
    "too few rows": (NoisyRows(5), "but 5 rows are too few to distinguish that from chance"),
}


@pytest.mark.parametrize(("rows", "expected"), UNEXPLAINED.values(), ids=UNEXPLAINED)
def test_overfitting_message_explains_uncertain_rise(rows: NoisyRows, expected: str) -> None:
    result = rows.judge(RISE_OF_10_PERCENT)
    assert expected in result.message
    assert "fewer epochs" not in result.message
    assert result.opened_at is None


def test_overfitting_message_names_step_and_advice() -> None:
    result = judge_overfitting(
        make_falling_losses(), make_points(U_SHAPE), 0.4, make_loss_measure(2.0, 1.62, half=0.05)
    )
    assert (result.best_step, result.opened_at, result.gap) == (40, 60, pytest.approx(1.22))
    for words in (
        "1.300 after step 40",
        "1.600 after step 80",
        "fewer epochs",
        "earlyStopping",
        "1.220 above the training",
    ):
        assert words in result.message


def test_overfitting_both_losses_rising_blames_learning_rate() -> None:
    result = judge_overfitting(make_rising_losses(), make_points(U_SHAPE), None, None)
    assert "learningRate" in result.message
    assert result.opened_at is None


UNKNOWN = {"none at all": ([], "dataset.validation"), "two": ([2.0, 1.9], "was measured 2 times")}


@pytest.mark.parametrize(("validation", "expected_message"), UNKNOWN.values(), ids=UNKNOWN)
def test_overfitting_unknown_verdict_gives_reason(validation: list[float], expected_message: str) -> None:
    assert expected_message in judge_overfitting(make_falling_losses(), make_points(validation), None, None).message


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
    result = judge_overfitting([], make_points([2.0, 1.5, 1.2]), training, final)
    assert result.gap == gap
    assert ("the training loss." in result.message) == (gap is not None)


Losses = st.floats(min_value=0.01, max_value=20)


@given(st.lists(Losses, min_size=3, max_size=30), st.lists(Losses, max_size=50))
def test_overfitting_falling_validation_loss_gives_none(validation: list[float], training: list[float]) -> None:
    result = judge_overfitting(
        make_points(training, every=1), make_points(sorted(validation, reverse=True)), None, None
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
    result: OverfittingResult = judge_overfitting(make_falling_losses(300, noise=0.05), make_points(noisy), None, None)
    assert result.verdict == "overfitting"
    assert result.best_step is not None
    assert result.opened_at is not None
    assert result.best_step < result.opened_at <= 10 * len(noisy)
