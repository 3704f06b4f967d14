"""Loss curves short enough to be kept and drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.records.evaluation import LossPoint

MAX_POINTS = 400


def downsample_points(points: Sequence[LossPoint], max_points: int = MAX_POINTS) -> list[LossPoint]:
    """At most so many of the points: of each stretch its lowest and highest, and the first and last of all."""
    if len(points) <= max_points:
        return list(points)
    inner, stretch_count = points[1:-1], (max_points - 2) // 2
    selected = [points[0]]
    for index in range(stretch_count):
        stretch = inner[index * len(inner) // stretch_count : (index + 1) * len(inner) // stretch_count]
        extremes = {point.step: point for point in (min(stretch, key=_get_loss), max(stretch, key=_get_loss))}
        selected += sorted(extremes.values(), key=lambda point: point.step)
    return [*selected, points[-1]]


def _get_loss(point: LossPoint) -> float:
    return point.loss
