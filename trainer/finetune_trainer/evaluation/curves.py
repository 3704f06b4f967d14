"""Loss curves short enough to be kept and drawn. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.records.evaluation import Point

MOST_POINTS = 400


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many of the points: of each stretch its lowest and highest, and the first and last of all."""
    if len(points) <= most:
        return list(points)
    inner, stretches = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for each in range(stretches):
        stretch = inner[each * len(inner) // stretches : (each + 1) * len(inner) // stretches]
        ends = {point.step: point for point in (min(stretch, key=_loss), max(stretch, key=_loss))}
        kept += sorted(ends.values(), key=lambda point: point.step)
    return [*kept, points[-1]]


def _loss(point: Point) -> float:
    return point.loss
