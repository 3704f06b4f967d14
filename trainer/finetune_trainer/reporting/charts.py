"""Geometry of charts: positions of lines, bars and labels in percent of the chart area. The templates draw them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_trainer.formatting import format_number, pluralize
from finetune_trainer.records.evaluation import Estimate, EvaluationReport, LengthBin

_MAX_DOTS = 40
_MAX_LABELS = 6


@dataclass(frozen=True)
class Tick:
    """Tick of an axis with its label."""

    position: float
    label: str


@dataclass(frozen=True)
class LineSeries:
    """One line of a chart. Its points are (x, y) in percent; y is measured from the top."""

    name: str
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        """Points in the format of an SVG `polyline`."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)

    @property
    def dots(self) -> list[tuple[float, float]]:
        """Points to mark with a dot: all of them, or none if there are too many to distinguish."""
        return self.points if len(self.points) <= _MAX_DOTS else []


@dataclass(frozen=True)
class StepMark:
    """Marked step in a line chart."""

    position: float
    label: str
    kind: str


@dataclass(frozen=True)
class LineChart:
    """Line chart of losses over steps."""

    series: list[LineSeries]
    x: list[Tick]
    y: list[Tick]
    marks: list[StepMark]
    description: str


@dataclass(frozen=True)
class HistogramColumn:
    """One bar of a histogram."""

    left: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """Histogram of the lengths of rows."""

    columns: list[HistogramColumn]
    x: list[Tick]
    y: list[Tick]
    description: str


@dataclass(frozen=True)
class Whisker:
    """Change with its confidence interval, in percent of the chart width. Zero is at 50."""

    low: float
    middle: float
    high: float


def compute_ticks(low: float, high: float, max_ticks: int = 6) -> list[float]:
    """Return evenly spaced round numbers that cover the range from `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    rough_step = span / (max_ticks - 1)
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough_step * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _format_labels(values: Sequence[float]) -> list[str]:
    step = values[1] - values[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{digits}f}" for value in values]


Points = Sequence[tuple[int, float]]
"""Optimizer steps and values."""


def build_loss_chart(evaluation: EvaluationReport) -> LineChart | None:
    """Build the chart of training and validation loss over steps, or return None if there is neither."""
    curves = {"training": evaluation.training_losses, "validation": evaluation.validation_losses}
    points = {name: [(point.step, point.loss) for point in losses] for name, losses in curves.items()}
    chart = _build_chart(points, "{name} loss")
    if chart is None:
        return None
    last_step = max(step for each in points.values() for step, _ in each) or 1
    return replace(chart, marks=_build_marks(evaluation, last_step))


def build_reward_charts(evaluation: EvaluationReport) -> list[tuple[str, LineChart]]:
    """Build the charts of the reward and of the length of answers over steps, with their titles. A reward that rises
    with the length alone may reward the length."""
    values = {
        "Mean reward": [(point.step, point.reward) for point in evaluation.rewards],
        "Mean length of answers, in tokens": [(point.step, point.answer_tokens) for point in evaluation.rewards],
    }
    charts = [(title, _build_chart({"training": points}, title.lower())) for title, points in values.items()]
    return [(title, chart) for title, chart in charts if chart]


def _build_chart(curves: Mapping[str, Points], label: str) -> LineChart | None:
    """Return the chart of these curves by name, or None without points. `label` names a value in the description."""
    filled = {name: points for name, points in curves.items() if points}
    if not filled:
        return None
    steps = [step for points in filled.values() for step, _ in points]
    values = [value for points in filled.values() for _, value in points]
    last_step, y_ticks = max(steps) or 1, compute_ticks(min(values), max(values))
    series = [
        LineSeries(
            name,
            [
                (_to_percent(step, 0, last_step), 100 - _to_percent(value, y_ticks[0], y_ticks[-1]))
                for step, value in points
            ],
        )
        for name, points in filled.items()
    ]
    x = [
        Tick(_to_percent(value, 0, last_step), f"{value:,.0f}")
        for value in compute_ticks(0, max(steps))
        if value <= last_step and value == int(value)
    ]
    return LineChart(series, x, _build_value_axis(y_ticks), [], _describe_curves(filled, label))


def _to_percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _build_marks(evaluation: EvaluationReport, last_step: int) -> list[StepMark]:
    overfitting = evaluation.overfitting
    named_steps = [("best", "best step", overfitting.best_step), ("opened", "gap opens", overfitting.opened_at)]
    return [
        StepMark(_to_percent(step, 0, last_step), f"{label}: {step:,}", kind)
        for kind, label, step in named_steps
        if step is not None and 0 <= step <= last_step
    ]


def _describe_curves(curves: Mapping[str, Points], label: str) -> str:
    return " ".join(
        f"The {label.format(name=name)} goes from {format_number(points[0][1])} at step {points[0][0]:,} to "
        f"{format_number(points[-1][1])} "
        f"at step {points[-1][0]:,}; its lowest is {format_number(min(value for _, value in points))}."
        for name, points in curves.items()
    )


def build_length_histogram(bars: Sequence[LengthBin]) -> Histogram | None:
    """Build the histogram of rows by their number of tokens, or return None if there are no rows."""
    if not any(bar.rows for bar in bars):
        return None
    y_ticks = compute_ticks(0, max(bar.rows for bar in bars), 5)
    width = 100 / len(bars)
    columns = [
        HistogramColumn(
            round(index * width, 2),
            round(width, 2),
            _to_percent(bar.rows, 0, y_ticks[-1]),
            f"{_format_range(bar.start, bar.end - 1)} tokens: {pluralize(bar.rows, 'row')}",
        )
        for index, bar in enumerate(bars)
    ]
    label_stride = math.ceil(len(bars) / _MAX_LABELS)
    edges = [bar.start for bar in bars] + [bars[-1].end]
    x = [Tick(round(index * width, 2), f"{edges[index]:,}") for index in range(0, len(edges), label_stride)]
    return Histogram(columns, x, _build_value_axis(y_ticks), _describe_lengths(bars))


def _describe_lengths(bars: Sequence[LengthBin]) -> str:
    filled = [bar for bar in bars if bar.rows]
    shortest, longest = filled[0].start, filled[-1].end - 1
    fullest_bin = max(bars, key=lambda bar: bar.rows)
    return (
        f"The rows have {_format_range(shortest, longest)} tokens. The most common length is "
        f"{_format_range(fullest_bin.start, fullest_bin.end - 1)} tokens, with {pluralize(fullest_bin.rows, 'row')} of "
        f"{sum(bar.rows for bar in bars):,}."
    )


def _format_range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def build_whisker(change: Estimate | None, higher_is_better: bool) -> Whisker | None:
    """Build the whisker of a change, with better to the right, or return None if it has no interval."""
    if change is None or change.low is None or change.high is None:
        return None
    sign = 1 if higher_is_better else -1
    reach = 1.15 * max(abs(change.low), abs(change.high), abs(change.value)) or 1
    low, middle, high = (50 + sign * 50 * value / reach for value in (change.low, change.value, change.high))
    return Whisker(round(min(low, high), 2), round(middle, 2), round(max(low, high), 2))


@dataclass(frozen=True)
class ScatterChart:
    """Values over a parameter. Points are (x, y) in percent; y is measured from the top."""

    dots: list[tuple[float, float]]
    best: LineSeries
    """The best value for each value of the parameter."""
    x: list[Tick]
    y: list[Tick]
    description: str


def build_history_chart(name: str, values: Sequence[float], champion: int | None) -> LineChart | None:
    """Build the chart of a metric over versions, the oldest first, or return None for fewer than two.

    `champion` is the index of the version to mark.
    """
    if len(values) < 2:
        return None
    last = len(values) - 1
    y_values = compute_ticks(min(values), max(values))
    points = [
        (_to_percent(index, 0, last), 100 - _to_percent(value, y_values[0], y_values[-1]))
        for index, value in enumerate(values)
    ]
    marks = [] if champion is None else [StepMark(_to_percent(champion, 0, last), "champion", "best")]
    description = (
        f"{name} goes from {format_number(values[0])} in the oldest of {len(values)} versions to "
        f"{format_number(values[-1])} in the newest."
    )
    x = [Tick(0, "oldest"), Tick(100, "newest")]
    return LineChart([LineSeries("validation", points)], x, _build_value_axis(y_values), marks, description)


def build_scatter_chart(name: str, values: Sequence[tuple[float, float]]) -> ScatterChart | None:
    """Build the chart of values over positive values of a parameter on a logarithmic axis, the best value first.

    Returns None if the parameter has fewer than two values.
    """
    best_values: dict[float, float] = {}
    for parameter, value in values:
        best_values.setdefault(parameter, value)
    if len(best_values) < 2:
        return None
    low, high = math.log(min(best_values)), math.log(max(best_values))
    y_values = compute_ticks(min(value for _, value in values), max(value for _, value in values))

    def place(parameter: float, value: float) -> tuple[float, float]:
        return _to_percent(math.log(parameter), low, high), 100 - _to_percent(value, y_values[0], y_values[-1])

    parameters = sorted(best_values)
    shown = parameters if len(parameters) <= _MAX_LABELS else [parameters[0], parameters[-1]]
    best = LineSeries("best", [place(parameter, best_values[parameter]) for parameter in parameters])
    x = [Tick(_to_percent(math.log(parameter), low, high), f"{parameter:g}") for parameter in shown]
    parameter, value = values[0]
    description = (
        f"The best of {pluralize(len(values), 'value')} of {name}, {format_number(value)}, is at {parameter:g}."
    )
    return ScatterChart([place(*each) for each in values], best, x, _build_value_axis(y_values), description)


def _build_value_axis(values: Sequence[float]) -> list[Tick]:
    labels = _format_labels(values)
    return [
        Tick(100 - _to_percent(value, values[0], values[-1]), label)
        for value, label in zip(values, labels, strict=True)
    ]
