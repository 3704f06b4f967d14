"""Where the lines, bars and labels of a chart lie, in percent of its area; the templates draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.records.evaluation import Bar, Estimate, Evaluation, Point
from finetune_trainer.reporting.formatting import number, plural

_MOST_DOTS = 40
_MOST_LABELS = 6


@dataclass(frozen=True)
class Tick:
    """A label on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """One line: its points as (x, y) percentages, y from the top."""

    name: str
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        """As SVG's `polyline` wants it."""
        return " ".join(f"{x:g},{y:g}" for x, y in self.points)

    @property
    def dots(self) -> list[tuple[float, float]]:
        """Its points, where they are few enough to be told apart."""
        return self.points if len(self.points) <= _MOST_DOTS else []


@dataclass(frozen=True)
class Mark:
    """A step worth looking at."""

    at: float
    label: str
    kind: str


@dataclass(frozen=True)
class LineChart:
    """Losses over steps."""

    series: list[Series]
    x: list[Tick]
    y: list[Tick]
    marks: list[Mark]
    description: str


@dataclass(frozen=True)
class Column:
    """One bar of a histogram."""

    left: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """How many rows are how long."""

    columns: list[Column]
    x: list[Tick]
    y: list[Tick]
    description: str


@dataclass(frozen=True)
class Whisker:
    """A change with its interval around zero, which lies at 50."""

    low: float
    middle: float
    high: float


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, evenly apart."""
    span = (high - low) or abs(high) or 1.0
    rough = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * each for each in (1, 2, 5, 10) if power * each >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [each * step for each in range(first, max(last, first + 1) + 1)]


def _labels(values: Sequence[float]) -> list[str]:
    step = values[1] - values[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{digits}f}" for value in values]


def _loss(point: Point) -> float:
    return point.loss


def losses(evaluation: Evaluation) -> LineChart | None:
    """Training and validation loss over steps; `None` if there is neither."""
    named = {"training": evaluation.training_losses, "validation": evaluation.validation_losses}
    kept = {name: points for name, points in named.items() if points}
    every = [point for points in kept.values() for point in points]
    if not every:
        return None
    across, up = ticks(0, max(point.step for point in every)), ticks(min(map(_loss, every)), max(map(_loss, every)))
    last = max(point.step for point in every) or 1
    series = [
        Series(name, [(_percent(each.step, 0, last), 100 - _percent(each.loss, up[0], up[-1])) for each in points])
        for name, points in kept.items()
    ]
    x = [Tick(_percent(at, 0, last), f"{at:,.0f}") for at in across if at <= last and at == int(at)]
    y = [Tick(100 - _percent(at, up[0], up[-1]), label) for at, label in zip(up, _labels(up), strict=True)]
    return LineChart(series, x, y, _marks(evaluation, last), _loss_words(named))


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _marks(evaluation: Evaluation, last: int) -> list[Mark]:
    found = evaluation.overfitting
    named = [("best", "best step", found.best_step), ("opened", "gap opens", found.opened_at)]
    return [
        Mark(_percent(step, 0, last), f"{label}: {step:,}", kind)
        for kind, label, step in named
        if step is not None and 0 <= step <= last
    ]


def _loss_words(named: dict[str, list[Point]]) -> str:
    return " ".join(
        f"The {name} loss goes from {number(points[0].loss)} at step {points[0].step:,} to {number(points[-1].loss)} "
        f"at step {points[-1].step:,}; its lowest is {number(min(map(_loss, points)))}."
        for name, points in named.items()
        if points
    )


def lengths(bars: Sequence[Bar]) -> Histogram | None:
    """Rows by their number of tokens; `None` without rows."""
    if not any(bar.rows for bar in bars):
        return None
    up = ticks(0, max(bar.rows for bar in bars), 5)
    width = 100 / len(bars)
    columns = [
        Column(
            round(place * width, 2),
            round(width, 2),
            _percent(bar.rows, 0, up[-1]),
            f"{bar.start:,} to {bar.end - 1:,} tokens: {plural(bar.rows, 'row')}",
        )
        for place, bar in enumerate(bars)
    ]
    every = math.ceil(len(bars) / _MOST_LABELS)
    edges = [bar.start for bar in bars] + [bars[-1].end]
    x = [Tick(round(place * width, 2), f"{edges[place]:,}") for place in range(0, len(edges), every)]
    y = [Tick(100 - _percent(at, 0, up[-1]), label) for at, label in zip(up, _labels(up), strict=True)]
    most = max(bars, key=lambda bar: bar.rows)
    words = f"Most rows, {most.rows:,}, have {most.start:,} to {most.end - 1:,} tokens."
    return Histogram(columns, x, y, words)


def whisker(change: Estimate | None, higher_is_better: bool) -> Whisker | None:
    """A change with its interval, better to the right; `None` without an interval."""
    if change is None or change.low is None or change.high is None:
        return None
    sign = 1 if higher_is_better else -1
    reach = 1.15 * max(abs(change.low), abs(change.high), abs(change.value)) or 1
    low, middle, high = (50 + sign * 50 * each / reach for each in (change.low, change.value, change.high))
    return Whisker(round(min(low, high), 2), round(middle, 2), round(max(low, high), 2))
