"""Tests of the result of a training that stops at a step."""

from __future__ import annotations

import math

import pytest

from finetune_trainer.contract import StepResult
from finetune_trainer.evaluation.step_result import build_step_result, describe_stop
from finetune_trainer.training.step_stop import StepEvaluation, StepReached

SUMS = [2.0 + number % 3 for number in range(30)]


def test_step_result_of_rows_has_interval_around_loss() -> None:
    evaluation = StepEvaluation(7, math.fsum(SUMS) / 60, True, SUMS, [2] * 30)
    result = build_step_result(evaluation)
    assert result
    assert result.eval_loss_low is not None
    assert result.eval_loss_high is not None
    # Student's t interval of 30 values with the mean 1.5 and the standard deviation 0.4152.
    assert (result.eval_loss_low, result.eval_loss_high) == pytest.approx((1.5 - 0.1551, 1.5 + 0.1551), abs=1e-3)
    message = describe_stop(StepReached(evaluation, 20), result)
    assert message == (
        "stopped at step 7 of 20, whose checkpoint is stored; the validation loss is 1.500 (95 % interval 1.345 to "
        "1.655); raise or remove suspendAtStep to continue"
    )


@pytest.mark.parametrize(
    "evaluation",
    [StepEvaluation(7, 1.5, True, SUMS[:3], [2] * 3), StepEvaluation(7, 1.5, True), StepEvaluation(7, 1.5, False)],
    ids=["few rows", "no loss of rows", "training loss"],
)
def test_step_result_without_enough_rows_has_no_interval(evaluation: StepEvaluation) -> None:
    assert build_step_result(evaluation) == StepResult(step=7, eval_loss=1.5)


def test_step_result_of_loss_that_is_not_finite_is_absent_and_said() -> None:
    evaluation = StepEvaluation(7, math.nan, on_validation=False)
    assert build_step_result(evaluation) is None
    assert "the training loss is not finite" in describe_stop(StepReached(evaluation, 20), None)
