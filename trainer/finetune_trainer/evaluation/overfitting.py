"""Detects overfitting in the loss curves of a training.

Losses fluctuate, so a rise of the validation loss counts only if the last value exceeds the minimum by more than 2 %,
if the change from the best to the last evaluation, paired by row, is more than chance, and if the smoothed training
loss did not rise as well: that indicates a learning rate that is too high, not memorization.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean
from typing import Literal

from finetune_trainer.evaluation import messages
from finetune_trainer.evaluation.decisions import is_significant
from finetune_trainer.evaluation.exact_tests import SIGNIFICANCE
from finetune_trainer.evaluation.findings import CurveTrend, LossCurves, ValidationRise
from finetune_trainer.evaluation.intervals import bonferroni_confidence, estimate_weighted_mean
from finetune_trainer.evaluation.losses import compute_loss_p_value
from finetune_trainer.records.evaluation import LossPoint, Measure, OverfittingResult
from finetune_trainer.training.row_losses import RowLossHistory

_MIN_EVALUATIONS = 3
"""Measurements of the validation loss: fewer show no minimum."""
_NOTICEABLE_CHANGE = 0.02
"""Relative change of a loss. Smaller changes depend on the rows of the last batches."""
_MIN_WINDOW = 5
_VERDICTS: Mapping[CurveTrend, Literal["overfitting", "unknown"]] = {
    "overfitting": "overfitting",
    "unknown": "unknown",
    "too few rows": "unknown",
}


def judge_overfitting(
    training: Sequence[LossPoint],
    validation: Sequence[LossPoint],
    final_training_loss: float | None,
    final_validation_loss: Measure | None,
    row_losses: RowLossHistory | None = None,
) -> OverfittingResult:
    """Return the verdict on the published model. Losses are in nats per token, points in the order of their steps.

    The final losses are those of the published model: on training rows, and `evalLoss`. Without losses of the
    validation rows, as for dpo and kto, a rise of more than 2 % is not compared with chance.
    """
    curves = analyze_curves(training, validation, row_losses or RowLossHistory())
    gap = _compute_gap(final_training_loss, validation, final_validation_loss)
    sentences = [messages.describe_curves(curves, _MIN_EVALUATIONS)]
    if gap is not None:
        sentences.append(messages.describe_gap(gap))
    return OverfittingResult(
        verdict=_VERDICTS.get(curves.trend, "none"),
        message=" ".join(sentences),
        gap=gap,
        best_step=curves.best.step if curves.best else None,
        opened_at=curves.opened_at,
        change=curves.rise.change if curves.rise else None,
        p_value=curves.rise.p_value if curves.rise else None,
    )


def analyze_curves(
    training: Sequence[LossPoint], validation: Sequence[LossPoint], row_losses: RowLossHistory
) -> LossCurves:
    """Compare the last validation loss with its minimum, and the training loss at both steps."""
    best = min(validation, key=lambda point: point.loss, default=None)
    if best is None or len(validation) < _MIN_EVALUATIONS:
        return LossCurves("unknown", len(validation), best, validation[-1] if validation else None)
    last = validation[-1]
    limit = best.loss + _NOTICEABLE_CHANGE * abs(best.loss)
    curves = LossCurves(
        trend="no rise",
        evaluations=len(validation),
        best=best,
        last=last,
        rise=_measure_rise(row_losses, best.step, last.step, comparisons=len(validation) - 1),
        training_at_best=_smooth_loss(training, best.step),
        training_at_last=_smooth_loss(training, last.step),
    )
    if last.loss <= limit:
        return curves
    trend = _explain_rise(curves)
    points_above_limit = [*takewhile(lambda point: point.loss > limit, reversed(validation))]
    opened_at = points_above_limit[-1].step if trend == "overfitting" else None
    return replace(curves, trend=trend, opened_at=opened_at)


def _measure_rise(
    row_losses: RowLossHistory, best_step: int, last_step: int, comparisons: int
) -> ValidationRise | None:
    """Return the change of the loss per token from the best to the last evaluation, or None if it is not known.

    The best of several evaluations is partly the luckiest one. The confidence level and the p-value are therefore those
    of a comparison of the last evaluation with each of `comparisons` earlier ones (Bonferroni's correction).
    """
    changes = row_losses.subtract(last_step, best_step)
    if changes is None or best_step == last_step:
        return None
    change = estimate_weighted_mean(changes, row_losses.token_counts, bonferroni_confidence(comparisons))
    p_value = compute_loss_p_value(changes)
    if p_value is None:
        return ValidationRise(change, None, is_decidable=True)
    lowest_p_value = 2.0 ** (1 - len(changes)) * comparisons
    return ValidationRise(change, min(1.0, p_value * comparisons), is_decidable=lowest_p_value <= SIGNIFICANCE)


def _explain_rise(curves: LossCurves) -> CurveTrend:
    """Return the explanation of a validation loss that is noticeably above its minimum at the end."""
    rise, at_best, at_last = curves.rise, curves.training_at_best, curves.training_at_last
    if rise and not rise.is_decidable:
        return "too few rows"
    if rise and not is_significant(rise.change, rise.p_value):
        return "chance"
    if at_best is not None and at_last is not None and at_last > at_best * (1 + _NOTICEABLE_CHANGE):
        return "both rise"
    return "overfitting"


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
