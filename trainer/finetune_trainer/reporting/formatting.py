"""Numbers as people read them."""

from __future__ import annotations

from finetune_trainer.records.evaluation import EnergyUse, Estimate

_MINUS = "\N{MINUS SIGN}"
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
    "generalPerplexity": "Perplexity",  # what it is of is said beside it
    "biasFlags": "Bias flags",
}


def display_name(name: str) -> str:
    """What papers call it; a metric that is not known here keeps its own name."""
    return _METRIC_NAMES.get(name, name)


def format_number(value: float) -> str:
    """With about four figures: `0.712`, `24.31`, `1,204`."""
    magnitude = abs(value)
    if magnitude >= 1000 or value == int(value):
        text = f"{value:,.0f}"
    elif magnitude < 0.01:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{3 if magnitude < 10 else 2 if magnitude < 100 else 1}f}"
    return text.replace("-", _MINUS)


def format_signed(value: float) -> str:
    """With its sign, as a change has one."""
    return f"+{format_number(value)}" if value > 0 else format_number(value)


def format_interval(estimate: Estimate, sign: bool = False) -> str:
    """`0.66 to 0.75`; empty where the rows were too few for one."""
    if estimate.low is None or estimate.high is None:
        return ""
    format_value = format_signed if sign else format_number
    return f"{format_value(estimate.low)} to {format_value(estimate.high)}"


def format_estimate(value: Estimate | None, sign: bool = False) -> str:
    """`0.71 (0.66 to 0.75)`."""
    if value is None:
        return "not measured"
    value_text = format_signed(value.value) if sign else format_number(value.value)
    interval_text = format_interval(value, sign)
    return f"{value_text} ({interval_text})" if interval_text else value_text


def format_share(part: float, total: float) -> str:
    """`12.5 %`; a part is never rounded to nothing or to all."""
    if not total:
        return "0 %"
    percent = 100 * part / total
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def pluralize(count: float, singular: str, plural_form: str = "") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{format_number(count)} {singular if count == 1 else plural_form or singular + 's'}"


def format_duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def format_energy(energy_use: EnergyUse) -> str:
    """`350 Wh, by the counters …`, `1.25 kWh, …`; or why there is no number."""
    watt_hours = energy_use.watt_hours
    if watt_hours is None:
        return energy_use.message
    return (
        f"{format_number(watt_hours)} Wh, {energy_use.message}"
        if watt_hours < 1000
        else f"{watt_hours / 1000:,.2f} kWh, {energy_use.message}"
    )


def format_size(count: float) -> str:
    """`1.2 MB`, in powers of 1000."""
    unit = "B"
    for larger_unit in ("kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger_unit
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
