"""Whether the model learnt its rows by heart, judged by the losses seen while it trained.

Losses go up and down by chance, so a rise counts only where the last look is more than 2 % and more than the validation
loss' own uncertainty above the lowest, and where the training loss, smoothed, did not rise as well: that would be a
learning rate too high, and nothing learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean

from finetune_trainer.records.evaluation import LossPoint, Measure, OverfittingResult

_MIN_EVALUATIONS = 3
"""At the validation loss: fewer show no turn."""
_NOTICEABLE_CHANGE = 0.02
"""Of a loss: less is what the last batches happen to be."""
FORGETTING_THRESHOLD = 0.1
"""Rise of the perplexity of general text, as a share of the base model's. A smaller one has no use as a warning."""
_MIN_WINDOW = 5
_REMEDY = "Train for fewer epochs, set training.earlyStopping, raise training.lora.dropout or add rows."


def judge_overfitting(
    training: Sequence[LossPoint],
    validation: Sequence[LossPoint],
    final_training_loss: float | None,
    final_validation_loss: Measure | None,
    forgetting: Measure | None,
) -> OverfittingResult:
    """The verdict on the model as published; losses in nats per token, points in the order of their steps.

    The final losses are of the published model: on as many training rows, and `evalLoss`.
    """
    best = min(validation, key=lambda point: point.loss, default=None)
    result = _judge_curves(training, validation, _compute_uncertainty(final_validation_loss))
    gap = _compute_gap(final_training_loss, validation, final_validation_loss)
    gap_sentences = (
        []
        if gap is None
        else [f"At the end it is {gap:.3g} above the training loss." if gap >= 0 else _describe_negative_gap(gap)]
    )
    return result.model_copy(
        update={
            "message": " ".join([result.message, *gap_sentences, *_describe_forgetting(forgetting)]),
            "gap": gap,
            "best_step": best.step if best else None,
            "forgetting": forgetting,
        }
    )


def _judge_curves(
    training: Sequence[LossPoint], validation: Sequence[LossPoint], uncertainty: float
) -> OverfittingResult:
    if len(validation) < _MIN_EVALUATIONS:
        return OverfittingResult(verdict="unknown", message=_describe_too_few(len(validation)))
    best, last = min(validation, key=lambda point: point.loss), validation[-1]
    limit = best.loss + max(_NOTICEABLE_CHANGE * abs(best.loss), uncertainty)
    if last.loss <= limit:
        message = (
            f"The validation loss ended at {last.loss:.4g}, not noticeably above its lowest, {_describe_point(best)}."
        )
        return OverfittingResult(verdict="none", message=message)
    rise_text = (
        f"The validation loss rose from {_describe_point(best)}, to {_describe_point(last)}, while the training loss"
    )
    loss_at_best, loss_at_last = _smooth_loss(training, best.step), _smooth_loss(training, last.step)
    if loss_at_best is not None and loss_at_last is not None and loss_at_last > loss_at_best * (1 + _NOTICEABLE_CHANGE):
        message = f"{rise_text} rose too, from {loss_at_best:.3g} to {loss_at_last:.3g}: lower training.learningRate."
        return OverfittingResult(verdict="none", message=message)
    training_text = (
        "was not seen"
        if loss_at_best is None or loss_at_last is None
        else f"went from {loss_at_best:.3g} to {loss_at_last:.3g}"
    )
    points_above_limit = [*takewhile(lambda point: point.loss > limit, reversed(validation))]
    message = f"{rise_text} {training_text}: the model learns its rows by heart. {_REMEDY}"
    return OverfittingResult(verdict="overfitting", message=message, opened_at=points_above_limit[-1].step)


def _describe_too_few(evaluations: int) -> str:
    if not evaluations:
        return "There is no validation data to tell by; set dataset.validation."
    return (
        f"The validation loss was looked at {evaluations} times, {_MIN_EVALUATIONS} show whether it turned; lower "
        "training.evalSteps."
    )


def _describe_point(point: LossPoint) -> str:
    return f"{point.loss:.4g} after step {point.step}"


def _describe_negative_gap(gap: float) -> str:
    return f"At the end it is {-gap:.3g} below the training loss."


def _compute_uncertainty(final_loss: Measure | None) -> float:
    """Half the interval's width: the loss of other rows of this kind could as well be so far off."""
    if final_loss is None or final_loss.tuned.low is None or final_loss.tuned.high is None:
        return 0.0
    return (final_loss.tuned.high - final_loss.tuned.low) / 2


def _smooth_loss(training: Sequence[LossPoint], step: int) -> float | None:
    """The mean of the last tenth of the training losses up to a step; of the first ones where there are none yet."""
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


def is_forgetting(forgetting: Measure | None) -> bool:
    """Whether general text has become harder, beyond chance and by a relevant amount."""
    if forgetting is None or forgetting.base is None or forgetting.change is None:
        return False
    is_significant = forgetting.change.low is not None and forgetting.change.low > 0
    return is_significant and forgetting.change.value >= FORGETTING_THRESHOLD * forgetting.base.value


def _describe_forgetting(forgetting: Measure | None) -> list[str]:
    if forgetting is None or forgetting.base is None or not is_forgetting(forgetting):
        return []
    base, tuned = forgetting.base.value, forgetting.tuned.value
    rise_text = f"Perplexity of general text rose from {base:.4g} to {tuned:.4g}"
    return [f"{rise_text}: the model forgets. Mix general rows into the data, or lower training.learningRate."]
