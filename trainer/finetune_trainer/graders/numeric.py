"""Compares numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from finetune_trainer.contract import Numeric
from finetune_trainer.graders.base import AnswerGrader, AnswerProblem, DataProblem, GradedAnswer
from finetune_trainer.graders.regular_expression import RegularExpression
from finetune_trainer.graders.templates import resolve_value

_SIGN = r"(?:(?<![\w.)])[-+\u2212])?"
_NUMBER = re.compile(
    rf"{_SIGN}(?<!\w)(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d{{1,4}}(?!\w))?|{_SIGN}(?<![\w.])\.\d+"
)
"""A number. Digits after a letter are a part of a word, and a sign after a letter or digit is a hyphen. Commas separate
groups of three digits."""
_MAX_CHARS = 10_000
"""Maximum length of a number."""


class NumericGrader(AnswerGrader):
    """Scores 1 if the number in the text equals the reference within the tolerance."""

    def __init__(self, name: str, settings: Numeric) -> None:
        self._settings = settings
        self._pattern: RegularExpression | None = None
        if settings.extract is not None:
            self._pattern = RegularExpression(settings.extract, f"evaluation.graders[{name}].numeric.extract")

    def score(self, answer: GradedAnswer) -> float:
        reference = read_number(resolve_value(self._settings.reference, answer))
        if reference is None:
            raise DataProblem(f"{self._settings.reference} is not a number")
        number = self._extract(resolve_value(self._settings.input, answer))
        if number is None:
            raise AnswerProblem("the answer has no number")
        return float(self._is_close(number, reference))

    def _extract(self, value: object) -> Decimal | None:
        if not isinstance(value, str) or self._pattern is None:
            return read_number(value)
        matches = list(self._pattern.find_all(value))
        return read_number(matches[-1]) if matches else None

    def _is_close(self, number: Decimal, reference: Decimal) -> bool:
        if number == reference:
            return True
        relative = Decimal(str(self._settings.relative_tolerance))
        try:
            limit = max(Decimal(str(self._settings.tolerance)), relative * abs(reference))
            return abs(number - reference) <= limit
        except ArithmeticError:  # the numbers are too far apart
            return False


def read_number(value: object) -> Decimal | None:
    """Return a JSON number, or the last number of a text, or None if there is none."""
    if isinstance(value, bool) or value is None:
        return None
    texts: Iterable[str] = _NUMBER.findall(value) if isinstance(value, str) else [str(value)]
    numbers = list(texts)
    return _parse_number(numbers[-1]) if numbers else None


def _parse_number(text: str) -> Decimal | None:
    if len(text) > _MAX_CHARS:
        return None
    try:
        number = Decimal(text.replace(",", "").replace("\u2212", "-"))
    except ArithmeticError:
        return None
    return number if number.is_finite() else None
