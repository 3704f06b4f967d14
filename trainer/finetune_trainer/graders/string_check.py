"""Compares texts."""

from __future__ import annotations

import unicodedata

from finetune_trainer.contract import StringCheck
from finetune_trainer.graders.base import AnswerGrader, GradedAnswer
from finetune_trainer.graders.regular_expression import RegularExpression
from finetune_trainer.graders.templates import resolve_text


class StringCheckGrader(AnswerGrader):
    """Scores 1 if the text equals, does not equal, contains or matches the reference."""

    def __init__(self, name: str, settings: StringCheck) -> None:
        self._settings = settings
        self._pattern: RegularExpression | None = None
        if settings.operation == "matches":
            field = f"evaluation.graders[{name}].stringCheck.reference"
            self._pattern = RegularExpression(settings.reference, field, ignore_case=settings.ignore_case)

    def score(self, answer: GradedAnswer) -> float:
        text = resolve_text(self._settings.input, answer)
        if self._pattern:
            return float(self._pattern.matches(text))
        reference = self._normalize(resolve_text(self._settings.reference, answer))
        return float(self._compare(self._normalize(text), reference))

    def _compare(self, text: str, reference: str) -> bool:
        if self._settings.operation == "contains":
            return reference in text
        return (text == reference) == (self._settings.operation == "equals")

    def _normalize(self, text: str) -> str:
        normalized = unicodedata.normalize("NFC", text.strip())
        return unicodedata.normalize("NFC", normalized.casefold()) if self._settings.ignore_case else normalized
