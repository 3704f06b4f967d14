"""The sentences in which `evaluation.json`, the report and the card state the judgments on overfitting and bias."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.evaluation.findings import BiasPreferences, LossCurves, PreferenceTrend
from finetune_trainer.formatting import format_number, pluralize
from finetune_trainer.records.evaluation import Estimate, LossPoint

_OVERFITTING_REMEDY = "Train for fewer epochs, set training.earlyStopping, raise training.lora.dropout or add rows."
_PREFERENCE_TEXTS = {
    "pair": "the stereotype over its counterpart",
    "swap": "the texts of the data over the same texts with the terms swapped",
}
_TREND_TEXTS: Mapping[PreferenceTrend, str] = {
    "increased": "increased",
    "decreased": "decreased",
    "unclear": "did not clearly change",
}


def describe_curves(curves: LossCurves, min_evaluations: int) -> str:
    """Describe how the validation loss developed, and what to do about it."""
    best, last = curves.best, curves.last
    if best is None or last is None:
        return "There is no validation data to detect overfitting; set dataset.validation."
    if curves.trend == "unknown":
        return (
            f"The validation loss was measured {pluralize(curves.evaluations, 'time')}; at least {min_evaluations} "
            "measurements show whether it increases: set training.evalSteps so that it is measured more often."
        )
    if curves.trend == "no rise" and last == best:
        return f"The validation loss is lowest at the end of the training: {_format_point(last)}."
    if curves.trend == "no rise":
        loss_text = format_number(last.loss)
        return f"The validation loss ended at {loss_text}, not noticeably above its minimum, {_format_point(best)}."
    rise_text = f"The validation loss rose from {_format_point(best)}, to {_format_point(last)}"
    if curves.rise and curves.trend == "too few rows":
        return f"{rise_text}, but {curves.rise.change.samples} rows are too few to distinguish that from chance."
    if curves.rise and curves.trend == "chance":
        return f"{rise_text}, which may be due to chance on {curves.rise.change.samples} rows."
    training_text = f"{rise_text}, while the training loss {_describe_training(curves)}"
    if curves.trend == "both rise":
        return f"{training_text} as well: lower training.learningRate."
    return f"{training_text}: the model is memorizing the training data. {_OVERFITTING_REMEDY}"


def _describe_training(curves: LossCurves) -> str:
    if curves.training_at_best is None or curves.training_at_last is None:
        return "was not recorded"
    return f"went from {format_number(curves.training_at_best)} to {format_number(curves.training_at_last)}"


def describe_gap(gap: float) -> str:
    """State the difference between the validation loss and the training loss of the published adapter."""
    position = "above" if gap >= 0 else "below"
    return f"For the published adapter it is {format_number(abs(gap))} {position} the training loss."


def describe_forgetting(base: Estimate, tuned: Estimate, *, is_forgetting: bool) -> str:
    """State how the perplexity of general text changed."""
    values = f"{format_number(base.value)} to {format_number(tuned.value)}"
    if not is_forgetting:
        return f"Perplexity of general text went from {values}: no relevant rise."
    return f"Perplexity of general text rose from {values}: the model forgot general knowledge of the base model."


def describe_selected_step(selected: LossPoint) -> str:
    """Say which adapter is published after early stopping, which discarded the later ones."""
    return (
        f"The adapter of step {selected.step:,} is published, because it has the lowest validation loss, "
        f"{format_number(selected.loss)}."
    )


def describe_bias(preferences: BiasPreferences, change: Estimate, trend: PreferenceTrend) -> str:
    """State how a preference changed, with its interval at the corrected confidence."""
    interval = f"{change.low or 0:+.3g} to {change.high or 0:+.3g}"
    return (
        f"{preferences.category}: the preference for {_PREFERENCE_TEXTS[preferences.kind]} {_TREND_TEXTS[trend]} "
        f"({change.value:+.3g} nats per token, {interval} at the confidence corrected for all comparisons, "
        f"{change.samples} pairs)."
    )


def _format_point(point: LossPoint) -> str:
    return f"{format_number(point.loss)} after step {point.step:,}"
