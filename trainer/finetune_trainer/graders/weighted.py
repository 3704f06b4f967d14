"""The weighted mean of other graders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_trainer.contract import Weighted
from finetune_trainer.graders.base import Grade


def combine_grades(settings: Weighted, grades: Mapping[str, Sequence[Grade]]) -> list[Grade]:
    """Return the weighted mean of the grades of each answer, by the name of the grader. There is no score if one of
    them has none."""
    weights = [term.weight for term in settings.terms]
    columns = [grades[term.grader] for term in settings.terms]
    names = [term.grader for term in settings.terms]
    return [_combine(names, weights, row) for row in zip(*columns, strict=True)]


def _combine(names: Sequence[str], weights: Sequence[float], grades: Sequence[Grade]) -> Grade:
    total = 0.0
    for name, weight, grade in zip(names, weights, grades, strict=True):
        if grade.score is None:
            return Grade(None, f"{name}: {grade.problem}")
        total += weight * grade.score
    return Grade(min(1.0, total / sum(weights)))
