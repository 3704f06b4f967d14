"""Downsamples loss curves for records and charts."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

from finetune_trainer.records.evaluation import LossPoint, RewardPoint

MAX_POINTS = 400
PointT = TypeVar("PointT", LossPoint, RewardPoint)


def downsample_points(points: Sequence[PointT], max_points: int = MAX_POINTS, value: str = "loss") -> list[PointT]:
    """Return at most `max_points` points: the first, the last, and the minimum and maximum of `value` in each interval
    between."""
    if len(points) <= max_points:
        return list(points)
    inner, stretch_count = points[1:-1], (max_points - 2) // 2
    selected: dict[int, PointT] = {}
    for index in range(stretch_count):
        stretch = inner[index * len(inner) // stretch_count : (index + 1) * len(inner) // stretch_count]
        extremes = (min(stretch, key=attrgetter(value)), max(stretch, key=attrgetter(value)))
        selected |= {point.step: point for point in sorted(extremes, key=attrgetter("step"))}
    downsampled = [points[0]]
    downsampled.extend(selected.values())
    downsampled.append(points[-1])
    return downsampled
