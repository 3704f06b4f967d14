"""Words of texts in any script."""

from __future__ import annotations

import regex

UNSPACED_LETTERS = (
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_WORDS = regex.compile(
    rf"{UNSPACED_LETTERS}|(?!{UNSPACED_LETTERS})[\p{{L}}\p{{N}}](?:(?!{UNSPACED_LETTERS})[\p{{L}}\p{{M}}\p{{N}}])*"
)
"""Vowel signs are marks, at which `re` would end a word. A word does not begin with a mark, as emoji do."""


class WordTokenizer:
    """Splits text of any script into words. The tokenizer of rouge_score supports a to z only, and finds no words in
    Russian or Chinese. The result is the same for English; there is no stemming, as by default in rouge_score.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case."""
        words: list[str] = _WORDS.findall(text.lower())
        return words
