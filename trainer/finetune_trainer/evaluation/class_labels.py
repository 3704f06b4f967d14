"""Which label an answer stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

_GOES_ON = r"[\w\p{M}\p{N}+#]|[.,]\d|['\u2019\u2010\u2011-]\w"
"""What makes a label another word, as in `C++`, `can't`, `no-one`, or another number. Vowel signs go on a word too,
which `re` does not know."""


def normalised(text: str) -> str:
    """Without case and surrounding space, and with each letter and each emoji written in one way."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return folded.replace("\ufe0e", "").replace("\ufe0f", "").strip()  # as text or in colour


class Labels:
    """The distinct references, in alphabetical order, each as it is first spelt."""

    def __init__(self, references: Sequence[str]) -> None:
        spelt: dict[str, str] = {}
        for each in references:
            spelt.setdefault(normalised(each), each.strip())
        self.names = [spelt[key] for key in sorted(spelt)]
        self._numbers = {key: number for number, key in enumerate(sorted(spelt))}
        # The longest first: "not spam" is not "not".
        choices = "|".join(regex.escape(key) for key in sorted(spelt, key=len, reverse=True) if key)
        self._begins = regex.compile(rf"(?:{choices})(?!{_GOES_ON})" if choices else r"(?!)")

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
