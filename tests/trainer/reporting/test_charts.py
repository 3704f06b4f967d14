"""Geometry of the charts."""

from __future__ import annotations

import pytest
from tests.support.trainer import run_records

from finetune_trainer.evaluation import curves
from finetune_trainer.records.evaluation import Estimate, LengthBin, LossPoint
from finetune_trainer.reporting import charts

TICKS = {
    "from zero": (0, 900, [0, 200, 400, 600, 800, 1000]),
    "small": (0.31, 0.92, [0.2, 0.4, 0.6, 0.8, 1.0]),
    "tiny": (0, 3e-7, [0, 1e-7, 2e-7, 3e-7]),
    "around zero": (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    "nothing": (0, 0, [0, 0.2]),
    "one value": (5, 5, [5, 6]),
}


@pytest.mark.parametrize(("low", "high", "expected"), TICKS.values(), ids=TICKS)
def test_ticks_cover_range_with_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert charts.compute_ticks(low, high) == pytest.approx(expected)


def test_thin_many_points_keeps_extremes() -> None:
    points = [LossPoint(step=step, loss=1 + (step % 7) / 10) for step in range(50_000)]
    points[31_111] = LossPoint(step=31_111, loss=99)
    points[31_112] = LossPoint(step=31_112, loss=-5)
    thinned = curves.downsample_points(points)
    assert len(thinned) <= curves.MAX_POINTS
    assert {points[0], points[-1], points[31_111], points[31_112]} <= set(thinned)
    assert [point.step for point in thinned] == sorted({point.step for point in thinned})


def test_thin_few_points_is_unchanged() -> None:
    points = [LossPoint(step=step, loss=step) for step in range(curves.MAX_POINTS)]
    assert curves.downsample_points(points) == points


def test_losses_chart_lines_stay_inside() -> None:
    chart = charts.build_loss_chart(run_records.make_full_evaluation())
    assert chart is not None
    assert [series.name for series in chart.series] == ["training", "validation"]
    assert all(0 <= coordinate <= 100 for series in chart.series for point in series.points for coordinate in point)
    assert [(mark.kind, mark.label) for mark in chart.marks] == [
        ("best", "best step: 500"),
        ("opened", "gap opens: 600"),
    ]
    assert [tick.label for tick in chart.x] == ["0", "200", "400", "600", "800"]


def test_lengths_chart_columns_fill_width() -> None:
    chart = charts.build_length_histogram([LengthBin(start=0, end=10, rows=4), LengthBin(start=10, end=40, rows=1)])
    assert chart is not None
    assert [(column.left, column.width, column.height) for column in chart.columns] == [(0, 50, 100), (50, 50, 25)]
    assert chart.columns[1].label == "10 to 39 tokens: 1 row"
    assert [tick.label for tick in chart.x] == ["0", "10", "40"]


WHISKERS = {
    "up": (Estimate(value=1, low=0.5, high=2, samples=9), True, lambda low, middle, high: 50 < low < middle < high),
    "a loss that fell": (Estimate(value=-1, low=-2, high=-0.5, samples=9), False, lambda low, *_: low > 50),
    "a loss that rose": (Estimate(value=1, low=0.5, high=2, samples=9), False, lambda *positions: positions[2] < 50),
    "nothing": (Estimate(value=0, low=0, high=0, samples=9), True, lambda *positions: set(positions) == {50}),
}


@pytest.mark.parametrize(("change", "higher", "lies"), WHISKERS.values(), ids=WHISKERS)
def test_whisker_improvement_is_on_the_right(change: Estimate, higher: bool, lies: object) -> None:
    whisker = charts.build_whisker(change, higher)
    assert whisker is not None
    assert callable(lies)
    assert lies(whisker.low, whisker.middle, whisker.high)


def test_whisker_without_interval_is_none() -> None:
    assert charts.build_whisker(Estimate(value=1, samples=2), True) is None
    assert charts.build_whisker(None, True) is None


def test_scatter_chart_line_joins_the_best_value_of_each_parameter() -> None:
    chart = charts.build_scatter_chart("evalLoss", [(1e-3, 1.0), (1e-4, 1.5), (1e-3, 2.0), (1e-4, 1.8)])
    assert chart
    assert chart.best.points == [(0.0, 50.0), (100.0, 100.0)]
    assert chart.dots == [(100.0, 100.0), (0.0, 50.0), (100.0, 0.0), (0.0, 20.0)]
    assert [(tick.position, tick.label) for tick in chart.x] == [(0.0, "0.0001"), (100.0, "0.001")]


def test_history_chart_goes_from_the_oldest_to_the_newest() -> None:
    chart = charts.build_history_chart("Accuracy", [0.5, 1.0, 0.75], 1)
    assert chart
    assert chart.series[0].points == [(0.0, 100.0), (50.0, 0.0), (100.0, 50.0)]
    assert [(mark.position, mark.label) for mark in chart.marks] == [(50.0, "champion")]
    assert charts.build_history_chart("Accuracy", [0.5], None) is None
