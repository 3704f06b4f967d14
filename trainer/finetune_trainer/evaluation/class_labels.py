"""Which label an answer stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

_WORD_CONTINUATION = r"[\w\p{M}\p{N}+#]|[.,]\d|['\u2019\u2010\u2011-]\w"
"""What makes a label another word, as in `C++`, `can't`, `no-one`, or another number. Vowel signs go on a word too,
which `re` does not know."""


def normalize_text(text: str) -> str:
    """Without case and surrounding space, and with each letter and each emoji written in one way."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return folded.replace("\ufe0e", "").replace("\ufe0f", "").strip()  # as text or in colour


class ClassLabels:
    """The distinct references, in alphabetical order, each as it is first spelt."""

    def __init__(self, references: Sequence[str]) -> None:
        spellings: dict[str, str] = {}
        for reference in references:
            spellings.setdefault(normalize_text(reference), reference.strip())
        self.names = [spellings[key] for key in sorted(spellings)]
        self._indices = {key: index for index, key in enumerate(sorted(spellings))}
        # The longest first: "not spam" is not "not".
        choices = "|".join(regex.escape(key) for key in sorted(spellings, key=len, reverse=True) if key)
        self._prefix_pattern = regex.compile(rf"(?:{choices})(?!{_WORD_CONTINUATION})" if choices else r"(?!)")

    @property
    def other_index(self) -> int:
        """The number of whatever is no label."""
        return len(self.names)

    def find_index(self, answer: str) -> int:
        """The label that the answer is or begins with, as in `Positive. The guest liked it.`"""
        text = normalize_text(answer)
        if text in self._indices:
            return self._indices[text]
        match = self._prefix_pattern.match(text)
        return self._indices[match.group()] if match else self.other_index
