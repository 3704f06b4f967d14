"""Formatting of metrics and estimates in the report and the model card."""

from __future__ import annotations

from finetune_trainer.formatting import format_number, format_signed
from finetune_trainer.records.evaluation import EnergyUse, Estimate

_METRIC_NAMES = {
    "evalLoss": "Validation loss",
    "perplexity": "Perplexity",
    "accuracy": "Accuracy",
    "macroF1": "Macro F1",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "exactMatch": "Exact match",
    "evalRewardAccuracy": "Reward accuracy",
    "crossValidationLoss": "Cross-validation loss",
    "testLoss": "Test loss",
    "testAccuracy": "Test accuracy",
    "testMacroF1": "Test macro F1",
    "testRouge1": "Test ROUGE-1",
    "testRouge2": "Test ROUGE-2",
    "testRougeL": "Test ROUGE-L",
    "testBleu": "Test BLEU",
    "testChrf": "Test chrF",
    "testExactMatch": "Test exact match",
    "generalPerplexity": "Perplexity",  # the text next to it says of which data
    "biasFlags": "Bias flags",
}


def display_name(name: str) -> str:
    """Return the name of a metric as used in papers. An unknown metric keeps its name."""
    return _METRIC_NAMES.get(name, name)


def format_interval(estimate: Estimate, sign: bool = False) -> str:
    """Format the confidence interval: `0.66 to 0.75`. It is empty if there were too few rows for an interval, and if a
    bootstrap gave one without a width, as for a perfect score, which would look like certainty."""
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return ""
    format_value = format_signed if sign else format_number
    return f"{format_value(estimate.low)} to {format_value(estimate.high)}"


def format_estimate(value: Estimate | None, sign: bool = False) -> str:
    """Format an estimate with its confidence interval: `0.71 (0.66 to 0.75)`."""
    if value is None:
        return "not measured"
    value_text = format_signed(value.value) if sign else format_number(value.value)
    interval_text = format_interval(value, sign)
    return f"{value_text} ({interval_text})" if interval_text else value_text


def format_p_value(p_value: float) -> str:
    """Format a p-value: `p = 0.031`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def format_energy(energy_use: EnergyUse) -> str:
    """Format the energy with its source: `350 Wh, by the counters …`, or the reason why it was not measured."""
    watt_hours = energy_use.watt_hours
    if watt_hours is None:
        return energy_use.message
    return (
        f"{format_number(watt_hours)} Wh, {energy_use.message}"
        if watt_hours < 1000
        else f"{watt_hours / 1000:,.2f} kWh, {energy_use.message}"
    )
