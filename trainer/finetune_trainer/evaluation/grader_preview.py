"""Grades the answers of the data themselves, before the training: a right answer should have a high score, and a grader
whose fields are missing in the data shows at once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from finetune_trainer.contract import Model, Reason, TrainerConfig
from finetune_trainer.data.row_archive import ArchivedRow
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.prompts import select_row_numbers
from finetune_trainer.graders.base import Grade, GradedAnswer
from finetune_trainer.graders.suite import GraderSuite, select_local

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.preparation import PreparedData


class GraderPreview(Model):
    """The scores that a grader gives to answers."""

    name: str
    split: str = ""
    """Split of the rows: `validation` or `test`."""
    mean: float | None
    """Mean score of the answers that have one, or None if none has."""
    answers: int
    ungraded: int
    """Number of answers without a score."""
    problem: str = ""
    """Why the first of these answers has no score."""

    def describe(self) -> str:
        """Return the numbers as text: `mean 0.98 of 200 answers, 3 without a score: item.total is missing`."""
        if self.mean is None and not self.ungraded:
            return f"no answers to score in {self.answers:,} rows"
        mean = "no score" if self.mean is None else f"mean {self.mean:.3g}"
        problem = f", {self.ungraded} without a score: {self.problem}" if self.ungraded else ""
        return f"{mean} of {self.answers:,} answers{problem}"


def preview_data_answers(config: TrainerConfig, prepared: PreparedData) -> list[GraderPreview]:
    """Return the scores of the answers of the data, of the rows that the evaluation will answer, by grader and split.

    Raises `CONFIG_INVALID` for an invalid pattern or schema.
    """
    splits = {"validation": prepared.validation_texts, "test": prepared.test_texts}
    if config.training.is_policy_method:
        splits = {"training": prepared.texts, **splits}
    # Without those that call endpoints: nothing leaves the machine before the evaluation.
    with GraderSuite(select_local(config.evaluation.graders)) as suite:
        return [
            preview
            for split, texts in splits.items()
            if texts is not None
            for preview in _preview_split(suite, split, _list_data_answers(texts, config.evaluation.max_samples))
        ]


def _preview_split(suite: GraderSuite, split: str, answers: Sequence[GradedAnswer]) -> list[GraderPreview]:
    """Return the scores of the answers of a split. Rows without one show whether graders can read their columns."""
    previews = [summarize_grades(name, grades, split) for name, grades in suite.grade(answers).items()]
    has_answers = any(answer.reference is not None for answer in answers)
    return previews if has_answers else [preview.model_copy(update={"mean": None}) for preview in previews]


def check_graders(config: TrainerConfig, prepared: PreparedData) -> None:
    """Raise `DATA_INVALID` if a grader cannot score too many of the answers of the data, besides the errors of
    `preview_data_answers`."""
    limit = config.evaluation.max_ungraded_fraction
    for preview in preview_data_answers(config, prepared):
        if preview.ungraded > limit * preview.answers:
            raise TrainerError(
                Reason.DATA_INVALID,
                f"evaluation.graders: {preview.name} gives no score to {preview.ungraded} of {preview.answers} answers "
                f"of the {preview.split} data ({preview.problem}), more than evaluation.maxUngradedFraction {limit:g}; "
                "correct the path or the data, or raise the fraction",
            )


def _list_data_answers(texts: datasets.Dataset, max_rows: int) -> list[GradedAnswer]:
    rows = [ArchivedRow.from_columns(texts[number]) for number in select_row_numbers(len(texts), max_rows)]
    return [GradedAnswer(row.reference or "", row.item, row.reference, row.turns) for row in rows if row.turns]


def summarize_grades(name: str, grades: Sequence[Grade], split: str = "") -> GraderPreview:
    """Return the mean of the scores of a grader, and what has none."""
    scores = [grade.score for grade in grades if grade.score is not None]
    problems = [grade.problem for grade in grades if grade.score is None]
    return GraderPreview(
        name=name,
        split=split,
        mean=fmean(scores) if scores else None,
        answers=len(grades),
        ungraded=len(problems),
        problem=problems[0] if problems else "",
    )
