"""Detects overfitting in the loss curves of a training.

Losses fluctuate, so a rise of the validation loss counts only if the last value exceeds the minimum by more than 2 %
and by more than the uncertainty of the validation loss, and if the smoothed training loss did not rise as well: that
indicates a learning rate that is too high, not memorization.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean

from finetune_trainer.evaluation import messages
from finetune_trainer.evaluation.findings import LossCurves
from finetune_trainer.records.evaluation import ForgettingResult, LossPoint, Measure, OverfittingResult

_MIN_EVALUATIONS = 3
"""Measurements of the validation loss: fewer show no minimum."""
_NOTICEABLE_CHANGE = 0.02
"""Relative change of a loss. Smaller changes depend on the rows of the last batches."""
FORGETTING_THRESHOLD = 0.1
"""Rise of the perplexity of general text, relative to the base model. A smaller one is no reason for a warning."""
_MIN_WINDOW = 5


def judge_overfitting(
    training: Sequence[LossPoint],
    validation: Sequence[LossPoint],
    final_training_loss: float | None,
    final_validation_loss: Measure | None,
) -> OverfittingResult:
    """Return the verdict on the published model. Losses are in nats per token, points in the order of their steps.

    The final losses are those of the published model: on as many training rows, and `evalLoss`.
    """
    curves = analyze_curves(training, validation, _compute_uncertainty(final_validation_loss))
    gap = _compute_gap(final_training_loss, validation, final_validation_loss)
    sentences = [messages.describe_curves(curves, _MIN_EVALUATIONS)]
    if gap is not None:
        sentences.append(messages.describe_gap(gap))
    return OverfittingResult(
        verdict=curves.trend if curves.trend in ("unknown", "overfitting") else "none",
        message=" ".join(sentences),
        gap=gap,
        best_step=curves.best.step if curves.best else None,
        opened_at=curves.opened_at,
    )


def judge_forgetting(measure: Measure) -> ForgettingResult:
    """Return the verdict on `generalPerplexity`: forgetting is a significant rise by a relevant amount."""
    if measure.base is None or measure.change is None:
        return ForgettingResult(verdict="unknown", message="Forgetting was not measured.", measure=measure)
    is_significant = measure.change.low is not None and measure.change.low > 0
    is_forgetting = is_significant and measure.change.value >= FORGETTING_THRESHOLD * measure.base.value
    return ForgettingResult(
        verdict="forgetting" if is_forgetting else "none",
        message=messages.describe_forgetting(measure.base, measure.tuned, is_forgetting=is_forgetting),
        measure=measure,
    )


def analyze_curves(
    training: Sequence[LossPoint], validation: Sequence[LossPoint], uncertainty: float = 0.0
) -> LossCurves:
    """Compare the last validation loss with its minimum, and the training loss at both steps."""
    best = min(validation, key=lambda point: point.loss, default=None)
    if best is None or len(validation) < _MIN_EVALUATIONS:
        return LossCurves("unknown", len(validation), best, validation[-1] if validation else None)
    last = validation[-1]
    limit = best.loss + max(_NOTICEABLE_CHANGE * abs(best.loss), uncertainty)
    if last.loss <= limit:
        return LossCurves("no rise", len(validation), best, last)
    at_best, at_last = _smooth_loss(training, best.step), _smooth_loss(training, last.step)
    if at_best is not None and at_last is not None and at_last > at_best * (1 + _NOTICEABLE_CHANGE):
        return LossCurves("both rise", len(validation), best, last, at_best, at_last)
    points_above_limit = [*takewhile(lambda point: point.loss > limit, reversed(validation))]
    opened_at = points_above_limit[-1].step
    return LossCurves("overfitting", len(validation), best, last, at_best, at_last, opened_at)


def _compute_uncertainty(final_loss: Measure | None) -> float:
    """Return half the width of the confidence interval of the validation loss."""
    if final_loss is None or final_loss.tuned.low is None or final_loss.tuned.high is None:
        return 0.0
    return (final_loss.tuned.high - final_loss.tuned.low) / 2


def _smooth_loss(training: Sequence[LossPoint], step: int) -> float | None:
    """Return the mean of the last tenth of the training losses up to a step, or of the first ones if there are none."""
    window = max(_MIN_WINDOW, len(training) // 10)
    recent_losses = [point.loss for point in training if point.step <= step][-window:]
    losses = recent_losses or [point.loss for point in training[:window]]
    return fmean(losses) if losses else None


def _compute_gap(
    training_loss: float | None, validation: Sequence[LossPoint], final_loss: Measure | None
) -> float | None:
    if training_loss is None or (final_loss is None and not validation):
        return None
    return (final_loss.tuned.value if final_loss else validation[-1].loss) - training_loss
