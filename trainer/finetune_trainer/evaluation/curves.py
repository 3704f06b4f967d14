"""Downsamples loss curves for records and charts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from finetune_trainer.records.evaluation import LossPoint

MAX_POINTS = 400


def downsample_points(points: Sequence[LossPoint], max_points: int = MAX_POINTS) -> list[LossPoint]:
    """Return at most `max_points` points: the first, the last, and the minimum and maximum of each interval between."""
    if len(points) <= max_points:
        return list(points)
    inner, stretch_count = points[1:-1], (max_points - 2) // 2
    selected = [points[0]]
    for index in range(stretch_count):
        stretch = inner[index * len(inner) // stretch_count : (index + 1) * len(inner) // stretch_count]
        extremes = {
            point.step: point for point in (min(stretch, key=attrgetter("loss")), max(stretch, key=attrgetter("loss")))
        }
        selected += sorted(extremes.values(), key=lambda point: point.step)
    return [*selected, points[-1]]
