"""`finetune-trainer grade`: score the answers in a file by the graders of a manifest, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from finetune_trainer.contract import Evaluation, Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.grader_preview import GraderPreview, summarize_grades
from finetune_trainer.graders.base import Grade, GradedAnswer
from finetune_trainer.graders.suite import GraderSuite
from finetune_trainer.text import to_one_line

_MAX_LINE_BYTES = 1 << 24
_FORM = '{"answer": "text", "item": {…}, "reference": "text"}'


class AnswerLine(Model):
    """A line of the file: an answer, with the row that it answers."""

    model_config = ConfigDict(extra="ignore")

    answer: str
    item: dict[str, Any] = Field(default={})
    """The columns of the row that `{{item.…}}` refers to."""
    reference: str | None = None
    """The answer of the data."""
    prompt: str = ""


def grade_file(evaluation: Evaluation, path: Path) -> tuple[list[GradedAnswer], dict[str, list[Grade]]]:
    """Return the answers of a file in JSON lines, and their grades by grader.

    Raises `CONFIG_INVALID` if there are no graders, and `DATA_INVALID` with the line of an answer that cannot be read.
    """
    if not evaluation.graders:
        raise TrainerError(Reason.CONFIG_INVALID, "the manifest has no evaluation.graders")
    answers = list(_read_answers(path))
    if not answers:
        raise TrainerError(Reason.DATASET_EMPTY, f"{path} has no lines; expected {_FORM}")
    with GraderSuite(evaluation.graders, evaluation.endpoints) as suite:
        return answers, suite.grade(answers)


def _read_answers(path: Path) -> Iterator[GradedAnswer]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), 1):
                if line.strip():
                    yield _parse_line(line, f"{path} line {number}")
    except OSError as error:
        raise TrainerError(Reason.DATA_NOT_FOUND, f"cannot read {path}: {error.strerror}") from error


def _parse_line(line: bytes, where: str) -> GradedAnswer:
    try:
        parsed = AnswerLine.model_validate_json(line)
    except ValidationError as error:
        problem = to_one_line(error.errors()[0]["msg"], 200)
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise TrainerError(
            Reason.DATA_INVALID, f"{where}: {field and f'{field}: '}{problem}; expected {_FORM}"
        ) from error
    prompt = (("user", parsed.prompt),) if parsed.prompt else ()
    return GradedAnswer(parsed.answer, parsed.item, parsed.reference, prompt)


def format_grades(grades: dict[str, list[Grade]]) -> str:
    """Return a line for each grader, with its mean and what has no score."""
    previews = [summarize_grades(name, each) for name, each in grades.items()]
    width = max(len(preview.name) for preview in previews)
    return "\n".join(f"{preview.name:<{width}}  {_describe(preview)}" for preview in previews)


def _describe(preview: GraderPreview) -> str:
    return to_one_line(preview.describe(), 300)


def format_json(grades: dict[str, list[Grade]]) -> str:
    """Return one JSON object per answer: the scores by grader, and the problems of those that have none."""
    count = len(next(iter(grades.values())))
    return "\n".join(json.dumps(_collect_row(grades, index), ensure_ascii=False) for index in range(count))


def _collect_row(grades: dict[str, list[Grade]], index: int) -> dict[str, Any]:
    row = {name: each[index] for name, each in grades.items()}
    return {
        "scores": {name: grade.score for name, grade in row.items()},
        "problems": {name: grade.problem for name, grade in row.items() if grade.score is None},
    }
