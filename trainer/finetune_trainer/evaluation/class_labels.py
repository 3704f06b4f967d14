"""Finds the class label in an answer."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

_WORD_CONTINUATION = r"[\w\p{M}\p{N}+#]|[.,]\d|['\u2019\u2010\u2011-]\w"
"""Characters that continue a word or number after a label, as in `C++`, `can't` and `no-one`. Vowel signs also continue
a word, which `re` does not support."""


def normalize_text(text: str) -> str:
    """Remove case and surrounding whitespace, and normalize letters and emoji."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return folded.replace("\ufe0e", "").replace("\ufe0f", "").strip()  # variation selectors of emoji


class ClassLabels:
    """The distinct references in alphabetical order, each in its first spelling."""

    def __init__(self, references: Sequence[str]) -> None:
        spellings: dict[str, str] = {}
        for reference in references:
            spellings.setdefault(normalize_text(reference), reference.strip())
        self.names = [spellings[key] for key in sorted(spellings)]
        self._indices = {key: index for index, key in enumerate(sorted(spellings))}
        # Longest first, so that "not spam" is not found as "not".
        choices = "|".join(regex.escape(key) for key in sorted(spellings, key=len, reverse=True) if key)
        self._prefix_pattern = regex.compile(rf"(?:{choices})(?!{_WORD_CONTINUATION})" if choices else r"(?!)")

    @property
    def other_index(self) -> int:
        """The index for answers without a label."""
        return len(self.names)

    def find_index(self, answer: str) -> int:
        """Return the index of the label that the answer equals or begins with, as in `Positive. The guest liked it.`"""
        text = normalize_text(answer)
        if text in self._indices:
            return self._indices[text]
        match = self._prefix_pattern.match(text)
        return self._indices[match.group()] if match else self.other_index
