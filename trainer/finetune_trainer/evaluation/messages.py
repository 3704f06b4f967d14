"""The sentences in which `evaluation.json`, the report and the card state the judgments on overfitting and bias."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_trainer.evaluation.findings import BiasPreferences, LossCurves, PreferenceTrend
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
            f"The validation loss was measured {curves.evaluations} times, at least {min_evaluations} measurements "
            "show whether it increases; lower training.evalSteps."
        )
    if curves.trend == "no rise":
        return f"The validation loss ended at {last.loss:.4g}, not noticeably above its minimum, {_format_point(best)}."
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
    return f"went from {curves.training_at_best:.3g} to {curves.training_at_last:.3g}"


def describe_gap(gap: float) -> str:
    """State the difference between the final validation loss and the training loss."""
    return f"At the end it is {abs(gap):.3g} {'above' if gap >= 0 else 'below'} the training loss."


def describe_forgetting(base: Estimate, tuned: Estimate, *, is_forgetting: bool) -> str:
    """State how the perplexity of general text changed."""
    if not is_forgetting:
        return f"Perplexity of general text went from {base.value:.4g} to {tuned.value:.4g}: no relevant rise."
    return (
        f"Perplexity of general text rose from {base.value:.4g} to {tuned.value:.4g}: the model forgot general "
        "knowledge of the base model."
    )


def describe_selected_step(step: int) -> str:
    """Say which adapter is published after early stopping."""
    return f"The adapter of step {step} is published, because it has the lowest validation loss."


def describe_bias(preferences: BiasPreferences, change: Estimate, trend: PreferenceTrend) -> str:
    """State how a preference changed, with its interval at the corrected confidence."""
    interval = f"{change.low or 0:+.3g} to {change.high or 0:+.3g}"
    return (
        f"{preferences.category}: the preference for {_PREFERENCE_TEXTS[preferences.kind]} {_TREND_TEXTS[trend]} "
        f"({change.value:+.3g} nats per token, {interval} at the confidence corrected for all comparisons, "
        f"{change.samples} pairs)."
    )


def _format_point(point: LossPoint) -> str:
    return f"{point.loss:.4g} after step {point.step}"
