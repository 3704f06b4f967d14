"""Whether the model learnt its rows by heart, judged by the losses seen while it trained.

Losses go up and down by chance, so a rise counts only where the last look is more than 2 % and more than the validation
loss' own uncertainty above the lowest, and where the training loss, smoothed, did not rise as well: that would be a
learning rate too high, and nothing learnt by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from statistics import fmean

from finetune_trainer.records.evaluation import Measure, Overfitting, Point

_MIN_LOOKS = 3
"""At the validation loss: fewer show no turn."""
_NOTICEABLE = 0.02
"""Of a loss: less is what the last batches happen to be."""
RELEVANT_FORGETTING = 0.1
"""Rise of the perplexity of general text, as a share of the base model's. A smaller one has no use as a warning."""
_SHORTEST_WINDOW = 5
_REMEDY = "Train for fewer epochs, set training.earlyStopping, raise training.lora.dropout or add rows."


def judge(
    training: Sequence[Point],
    validation: Sequence[Point],
    final_training_loss: float | None,
    final_validation: Measure | None,
    forgetting: Measure | None,
) -> Overfitting:
    """The verdict on the model as published; losses in nats per token, points in the order of their steps.

    The final losses are of the published model: on as many training rows, and `evalLoss`.
    """
    best = min(validation, key=lambda point: point.loss, default=None)
    found = _verdict(training, validation, _uncertainty(final_validation))
    gap = _gap(final_training_loss, validation, final_validation)
    apart = [] if gap is None else [f"At the end it is {gap:.3g} above the training loss." if gap >= 0 else _below(gap)]
    return found.model_copy(
        update={
            "message": " ".join([found.message, *apart, *_forgot(forgetting)]),
            "gap": gap,
            "best_step": best.step if best else None,
            "forgetting": forgetting,
        }
    )


def _verdict(training: Sequence[Point], validation: Sequence[Point], uncertainty: float) -> Overfitting:
    if len(validation) < _MIN_LOOKS:
        return Overfitting(verdict="unknown", message=_too_few(len(validation)))
    best, last = min(validation, key=lambda point: point.loss), validation[-1]
    limit = best.loss + max(_NOTICEABLE * abs(best.loss), uncertainty)
    if last.loss <= limit:
        message = f"The validation loss ended at {last.loss:.4g}, not noticeably above its lowest, {_at(best)}."
        return Overfitting(verdict="none", message=message)
    rose = f"The validation loss rose from {_at(best)}, to {_at(last)}, while the training loss"
    before, after = _smoothed(training, best.step), _smoothed(training, last.step)
    if before is not None and after is not None and after > before * (1 + _NOTICEABLE):
        message = f"{rose} rose too, from {before:.3g} to {after:.3g}: lower training.learningRate."
        return Overfitting(verdict="none", message=message)
    known = "was not seen" if before is None or after is None else f"went from {before:.3g} to {after:.3g}"
    risen = [*takewhile(lambda point: point.loss > limit, reversed(validation))]
    message = f"{rose} {known}: the model learns its rows by heart. {_REMEDY}"
    return Overfitting(verdict="overfitting", message=message, opened_at=risen[-1].step)


def _too_few(looks: int) -> str:
    if not looks:
        return "There is no validation data to tell by; set dataset.validation."
    return (
        f"The validation loss was looked at {looks} times, {_MIN_LOOKS} show whether it turned; lower "
        "training.evalSteps."
    )


def _at(point: Point) -> str:
    return f"{point.loss:.4g} after step {point.step}"


def _below(gap: float) -> str:
    return f"At the end it is {-gap:.3g} below the training loss."


def _uncertainty(final: Measure | None) -> float:
    """Half the interval's width: the loss of other rows of this kind could as well be so far off."""
    if final is None or final.tuned.low is None or final.tuned.high is None:
        return 0.0
    return (final.tuned.high - final.tuned.low) / 2


def _smoothed(training: Sequence[Point], step: int) -> float | None:
    """The mean of the last tenth of the training losses up to a step; of the first ones where there are none yet."""
    window = max(_SHORTEST_WINDOW, len(training) // 10)
    until = [point.loss for point in training if point.step <= step][-window:]
    losses = until or [point.loss for point in training[:window]]
    return fmean(losses) if losses else None


def _gap(training_loss: float | None, validation: Sequence[Point], final: Measure | None) -> float | None:
    if training_loss is None or (final is None and not validation):
        return None
    return (final.tuned.value if final else validation[-1].loss) - training_loss


def forgets(forgetting: Measure | None) -> bool:
    """Whether general text has become harder, beyond chance and by a relevant amount."""
    if forgetting is None or forgetting.base is None or forgetting.change is None:
        return False
    certain = forgetting.change.low is not None and forgetting.change.low > 0
    return certain and forgetting.change.value >= RELEVANT_FORGETTING * forgetting.base.value


def _forgot(forgetting: Measure | None) -> list[str]:
    if forgetting is None or forgetting.base is None or not forgets(forgetting):
        return []
    base, tuned = forgetting.base.value, forgetting.tuned.value
    rose = f"Perplexity of general text rose from {base:.4g} to {tuned:.4g}"
    return [f"{rose}: the model forgets. Mix general rows into the data, or lower training.learningRate."]
