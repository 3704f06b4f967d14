"""The result of a training that stops at a requested step: its loss, with an interval if each row has a loss."""

from __future__ import annotations

from finetune_trainer.contract import Outcome, Reason, StepResult
from finetune_trainer.evaluation.intervals import estimate_weighted_mean
from finetune_trainer.formatting import format_number
from finetune_trainer.telemetry.termination_message import build_outcome
from finetune_trainer.training.step_stop import StepEvaluation, StepReached


def build_stop_outcome(reached: StepReached, log_uri: str) -> Outcome:
    """Return the outcome of a run that is at the step to stop at."""
    result = build_step_result(reached.evaluation)
    outcome = build_outcome(Reason.STEP_REACHED, describe_stop(reached, result))
    return outcome.model_copy(update={"step_result": result, "log_uri": log_uri})


def build_step_result(evaluation: StepEvaluation) -> StepResult | None:
    """Return the loss and its 95 % confidence interval, or None if the loss is not finite, which JSON cannot express.

    There is no interval without validation data, for fewer rows than `intervals.MIN_SAMPLES`, and for methods whose
    loss is not one of tokens: TRL returns only means of batches.
    """
    if not evaluation.is_finite:
        return None
    result = StepResult(step=evaluation.step, eval_loss=evaluation.loss)
    if not any(evaluation.token_counts):
        return result
    estimate = estimate_weighted_mean(evaluation.row_sums, evaluation.token_counts)
    return result.model_copy(update={"eval_loss_low": estimate.low, "eval_loss_high": estimate.high})


def describe_stop(reached: StepReached, result: StepResult | None) -> str:
    """Return where the training stopped and with what loss, for the message of the outcome."""
    evaluation = reached.evaluation
    kind = "validation" if evaluation.on_validation else "training"
    loss = format_number(result.eval_loss) if result else "not finite"
    if result and result.eval_loss_low is not None and result.eval_loss_high is not None:
        loss += f" (95 % interval {format_number(result.eval_loss_low)} to {format_number(result.eval_loss_high)})"
    return (
        f"stopped at step {evaluation.step} of {reached.total_steps}, whose checkpoint is stored; the {kind} loss is "
        f"{loss}; raise or remove suspendAtStep to continue"
    )
