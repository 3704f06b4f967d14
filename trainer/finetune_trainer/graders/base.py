"""What a grader gets and returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class GradedAnswer:
    """An answer to grade, with the row that it answers."""

    text: str
    """The answer of the model, without reasoning. Tool calls follow the content, one per line, in the form of
    `data.answer_text.format_call`."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the row that graders read, by name."""
    reference: str | None = None
    """The answer of the data, in the form of `text`. None: the row has none."""
    prompt: Sequence[tuple[str, str]] = ()
    """The turns of the prompt, as role and text."""


@dataclass(frozen=True)
class Grade:
    """The score of an answer, or why there is none."""

    score: float | None
    """From 0 to 1. None: the grader could not score the answer, which does not count as 0."""
    problem: str = ""
    """Why there is no score, or why it is 0, as a clause: `item.total is not a number`."""
    sent_to: str = ""
    """Name of the endpoint that the answer was sent to, if it left the pod."""


class DataProblem(Exception):
    """The row lacks what the grader needs, so there is no score. The message is a clause."""


class AnswerProblem(Exception):
    """The answer lacks what the grader needs, so its score is 0. The message is a clause."""


class Grader(ABC):
    """Scores answers. A problem with an answer or its row is a `Grade`, and never an exception."""

    @abstractmethod
    def grade(self, answers: Sequence[GradedAnswer]) -> list[Grade]:
        """Return the grade of each answer, in order."""

    def close(self) -> None:
        """Stop processes and close connections."""
        return


class AnswerGrader(Grader):
    """Scores answers one by one."""

    def grade(self, answers: Sequence[GradedAnswer]) -> list[Grade]:
        return [self._grade_answer(answer) for answer in answers]

    def _grade_answer(self, answer: GradedAnswer) -> Grade:
        try:
            return Grade(self.score(answer))
        except AnswerProblem as problem:
            return Grade(0.0, str(problem))
        except DataProblem as problem:
            return Grade(None, str(problem))

    @abstractmethod
    def score(self, answer: GradedAnswer) -> float:
        """Return the score of an answer, from 0 to 1. Raises `AnswerProblem` and `DataProblem`."""
