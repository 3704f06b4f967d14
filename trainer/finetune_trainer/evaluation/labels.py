"""Which label an answer stands for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def normalised(text: str) -> str:
    """Without case and surrounding space, and with each letter written in one way."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).strip()


class Labels:
    """The distinct references, in alphabetical order, each as it is first spelt."""

    def __init__(self, references: Sequence[str]) -> None:
        spelt: dict[str, str] = {}
        for each in references:
            spelt.setdefault(normalised(each), each.strip())
        self.names = [spelt[key] for key in sorted(spelt)]
        self._numbers = {key: number for number, key in enumerate(sorted(spelt))}
        # The longest first: "not spam" is not "not". A label that goes on is another word, or another number.
        choices = "|".join(re.escape(key) for key in sorted(spelt, key=len, reverse=True) if key)
        self._begins = re.compile(rf"(?:{choices})(?!\w|[.,]\d)" if choices else r"(?!)")

    @property
    def other(self) -> int:
        """The number of whatever is no label."""
        return len(self.names)

    def number(self, answer: str) -> int:
        """The label that the answer is or begins with, as in `Positive. The guest liked it.`"""
        text = normalised(answer)
        if text in self._numbers:
            return self._numbers[text]
        found = self._begins.match(text)
        return self._numbers[found.group()] if found else self.other
