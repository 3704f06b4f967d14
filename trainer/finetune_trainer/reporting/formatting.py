"""Numbers as people read them."""

from __future__ import annotations

from finetune_trainer.records.evaluation import Energy, Estimate

_MINUS = "\N{MINUS SIGN}"
_NAMES = {
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


def measure_name(name: str) -> str:
    """What papers call it; a metric that is not known here keeps its own name."""
    return _NAMES.get(name, name)


def number(value: float) -> str:
    """With about four figures: `0.712`, `24.31`, `1,204`."""
    size = abs(value)
    if size >= 1000 or value == int(value):
        text = f"{value:,.0f}"
    elif size < 0.01:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"
    return text.replace("-", _MINUS)


def signed(value: float) -> str:
    """With its sign, as a change has one."""
    return f"+{number(value)}" if value > 0 else number(value)


def interval(estimate: Estimate, sign: bool = False) -> str:
    """`0.66 to 0.75`; empty where the rows were too few for one."""
    if estimate.low is None or estimate.high is None:
        return ""
    write = signed if sign else number
    return f"{write(estimate.low)} to {write(estimate.high)}"


def estimate(value: Estimate | None, sign: bool = False) -> str:
    """`0.71 (0.66 to 0.75)`."""
    if value is None:
        return "not measured"
    middle = signed(value.value) if sign else number(value.value)
    around = interval(value, sign)
    return f"{middle} ({around})" if around else middle


def share(part: float, whole: float) -> str:
    """`12.5 %`; a part is never rounded to nothing or to all."""
    if not whole:
        return "0 %"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def plural(count: float, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def energy(taken: Energy) -> str:
    """`350 Wh, by the counters …`, `1.25 kWh, …`; or why there is no number."""
    hours = taken.watt_hours
    if hours is None:
        return taken.message
    return f"{number(hours)} Wh, {taken.message}" if hours < 1000 else f"{hours / 1000:,.2f} kWh, {taken.message}"


def size(count: float) -> str:
    """`1.2 MB`, in powers of 1000."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
