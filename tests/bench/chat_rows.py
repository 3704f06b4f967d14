"""Chat rows of about 250 tokens of SmolLM2's tokenizer, for the comparison of data preparation."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

Turns = list[dict[str, str]]

_WORD = re.compile("Ġ([a-z]{1,14})")
"""Tokens of a byte-level vocabulary that are a word, or the beginning of one, after a space."""
_WORD_COUNT = 8000
_SENTENCE_WORDS = 12


def write_chat_rows(path: Path, tokenizer_file: Path, size: int) -> None:
    """Write rows of one to three answers as JSON Lines, a quarter of them with a system turn."""
    with path.open("w") as file:
        file.writelines(json.dumps({"messages": turns}) + "\n" for turns in _generate_rows(tokenizer_file, size))


def _generate_rows(tokenizer_file: Path, size: int) -> Iterator[Turns]:
    """Yield rows: 5 % are duplicates, 1 % contain an email address."""
    writer = _TextWriter(_load_words(tokenizer_file))
    turns: Turns = []
    for number in range(size):
        if number % 20 != 19:
            turns = writer.write_turns(has_system_turn=number % 4 == 0)
        if number % 100 == 1:
            turns[-1]["content"] += f" Write to user{number}@example.com."
        yield turns


def _load_words(tokenizer_file: Path) -> list[str]:
    """Return words of natural length, the most frequent first: byte-pair encoding merges frequent words early."""
    vocabulary: dict[str, int] = json.loads(tokenizer_file.read_text())["model"]["vocab"]
    matches = map(_WORD.fullmatch, sorted(vocabulary, key=vocabulary.__getitem__))
    return [match[1] for match in matches if match][:_WORD_COUNT]


class _TextWriter:
    """Writes texts whose words are as frequent as Zipf's law says."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._weights = list(accumulate(1 / (rank + 20) for rank in range(len(words))))
        self._rng = random.Random(0)

    def write_turns(self, *, has_system_turn: bool) -> Turns:
        turns = [{"role": "system", "content": self._write_text(12, 12)}] if has_system_turn else []
        for _ in range(self._rng.choice((1, 1, 2, 2, 3))):
            turns.append({"role": "user", "content": self._write_text(12, 60)})
            turns.append({"role": "assistant", "content": self._write_text(24, 130)})
        return turns

    def _write_text(self, min_words: int, max_words: int) -> str:
        count = self._rng.randint(min_words, max_words) // _SENTENCE_WORDS
        return " ".join(self._write_sentence() for _ in range(count))

    def _write_sentence(self) -> str:
        words = self._rng.choices(self._words, cum_weights=self._weights, k=_SENTENCE_WORDS)
        if self._rng.random() < 0.15:
            words[5] += f"{words[6]},"  # a rare word of several tokens
        if self._rng.random() < 0.1:
            words[7] = str(self._rng.randint(1, 2100))
        return " ".join(words).capitalize() + "."
