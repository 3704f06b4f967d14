"""Metrics of graders: the mean of their scores, and which answers have no score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.paired_measures import measure_scores
from finetune_trainer.graders.base import Grade
from finetune_trainer.records.evaluation import Measure

GradesByName = Mapping[str, Sequence[Grade]]
"""The grades of the answers of one model, by the name of the grader."""


def measure_graders(base: GradesByName, tuned: GradesByName) -> list[Measure]:
    """Return the mean score of each grader over the answers that both models have a score for."""
    measures = (_measure_grader(name, base[name], tuned[name]) for name in tuned)
    return [measure for measure in measures if measure]


def _measure_grader(name: str, base: Sequence[Grade], tuned: Sequence[Grade]) -> Measure | None:
    pairs = [
        (before.score, after.score)
        for before, after in zip(base, tuned, strict=True)
        if before.score is not None and after.score is not None
    ]
    if not pairs:
        return None
    return measure_scores(name, [before for before, _ in pairs], [after for _, after in pairs])


def list_ungraded(grades_by_model: Mapping[str, GradesByName]) -> list[str]:
    """Return a message for each grader that left answers of a model without a score."""
    return [
        f"{name}: {_describe_ungraded(grades)} of {model}, which are left out of the mean"
        for model, grades_by_name in grades_by_model.items()
        for name, grades in grades_by_name.items()
        if any(grade.score is None for grade in grades)
    ]


def check_ungraded(model: str, grades_by_name: GradesByName, max_fraction: float) -> None:
    """Raise `GRADER_FAILED` if a grader left more than this fraction of the answers of a model without a score."""
    for name, grades in grades_by_name.items():
        count = sum(grade.score is None for grade in grades)
        if grades and count > max_fraction * len(grades):
            raise TrainerError(
                Reason.GRADER_FAILED,
                f"evaluation.graders: {name} gave no score to {_describe_ungraded(grades)} of {model}, more than "
                f"evaluation.maxUngradedFraction {max_fraction:g}; correct the grader or the data, or raise the "
                "fraction; the checkpoint of the training is kept",
            )


def _describe_ungraded(grades: Sequence[Grade]) -> str:
    problems = Counter(grade.problem for grade in grades if grade.score is None)
    problem, _ = problems.most_common(1)[0]
    return f"{problems.total()} of {len(grades)} answers ({problem})"
