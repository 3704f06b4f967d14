"""Tests of the decision to stop early, given the validation losses so far."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.contract import EarlyStopping
from finetune_trainer.training.early_stopping import EvalResult, find_best, should_stop

NAN = math.nan


def make_evaluations(*losses: float) -> list[EvalResult]:
    """The first before any step."""
    return [EvalResult(10 * index, {"evalLoss": loss}) for index, loss in enumerate(losses)]


STOP_CASES = {
    # losses, patience, minDelta, whether it is over
    "nothing seen": ([], 1, 0, False),
    "before the first step only": ([3.0], 1, 0, False),
    "the base model's loss counts for nothing": ([1.0, 2.0], 1, 0, False),
    "still falling": ([3.0, 2.0, 1.5, 1.4], 1, 0, False),
    "once higher, patience of one": ([3.0, 2.0, 2.1], 1, 0, True),
    "once higher, patience of two": ([3.0, 2.0, 2.1], 2, 0, False),
    "equal is not lower": ([3.0, 2.0, 2.0], 1, 0, True),
    "lower again in time": ([3.0, 2.0, 2.1, 1.9, 1.95], 2, 0, False),
    "falls by too little": ([3.0, 2.0, 1.95, 1.91], 2, 0.1, True),
    "falls by little, together by enough": ([3.0, 2.0, 1.95, 1.85], 2, 0.1, False),
    "no number is not lower": ([3.0, 2.0, NAN, NAN], 2, 0, True),
}


@pytest.mark.parametrize(("losses", "patience", "min_delta", "expected"), STOP_CASES.values(), ids=STOP_CASES)
def test_early_stopping_losses_decide_stop(
    losses: list[float], patience: int, min_delta: float, expected: bool
) -> None:
    settings = EarlyStopping(patience=patience, min_delta=min_delta)
    assert should_stop(make_evaluations(*losses), settings) is expected
    assert not should_stop(make_evaluations(*losses), None)


BEST = {
    "none": ([], None),
    "the base model is no result": ([1.0, 2.0, 1.5], 20),
    "the first of equals": ([3.0, 2.0, 1.5, 1.5], 20),
    "numbers only": ([3.0, NAN, 2.0], 20),
    "no number at all": ([3.0, NAN], None),
}


@pytest.mark.parametrize(("losses", "step"), BEST.values(), ids=BEST)
def test_early_stopping_best_is_lowest_loss(losses: list[float], step: int | None) -> None:
    best = find_best(make_evaluations(*losses))
    assert (best.step if best else None) == step


def test_evaluation_nan_loss_round_trips_in_checkpoint() -> None:
    look = EvalResult(7, {"evalLoss": NAN, "evalRewardAccuracy": 0.5})
    again = EvalResult.from_json(look.to_json())
    assert (again.step, again.metrics["evalRewardAccuracy"]) == (7, 0.5)
    assert math.isnan(again.loss)
