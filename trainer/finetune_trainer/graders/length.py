"""Checks the length of a text."""

from __future__ import annotations

from finetune_trainer.contract import Length
from finetune_trainer.graders.base import AnswerGrader, GradedAnswer
from finetune_trainer.graders.templates import resolve_text
from finetune_trainer.graders.words import WordTokenizer


class LengthGrader(AnswerGrader):
    """Scores 1 within the limits, and less outside."""

    def __init__(self, _: str, settings: Length) -> None:
        self._settings = settings

    def score(self, answer: GradedAnswer) -> float:
        text = resolve_text(self._settings.input, answer).strip()
        length = len(text) if self._settings.unit == "characters" else len(WordTokenizer().tokenize(text))
        minimum, maximum = self._settings.minimum, self._settings.maximum
        if minimum is not None and length < minimum:
            return length / minimum
        if maximum is not None and length > maximum:
            return max(0.0, 2 - length / maximum)
        return 1.0
