"""Shingles (hashed word sequences) of rows, and detection of boilerplate: texts that many rows share."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from heapq import heappush, heapreplace

import xxhash

from finetune_trainer.data.row_texts import list_conversations, list_turns, serialize_canonical
from finetune_trainer.data.row_types import LabeledExample, Row

_SAMPLE_ROWS = 1000
_SAMPLE_WORDS = 2048
"""Number of words of a sampled turn that are used, at its start and at its end."""
_COMMON_ROW_SHARES = (0.01, 0.05, 0.9)
"""Shares of the rows from which a shingle counts as common. The second one finds an instruction that is in all rows
but has a part that varies, such as examples that were chosen at random."""
_MIN_ROW_SHARE = 0.01
"""Minimum share of the rows that must have the same text."""
_MIN_ROWS = 12
"""Minimum number of rows that must have the same text. Fewer rows that share a text are copies of one row."""
_MIN_SHINGLES = 8
"""Minimum length of boilerplate in shingles. A shorter text cannot make rows near-duplicates."""
# In scripts without spaces, each character counts as a word.
_UNSPACED_SCRIPTS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD_PATTERN = re.compile(rf"[{_UNSPACED_SCRIPTS}]|[^\W{_UNSPACED_SCRIPTS}]+")


def compute_shingles(row: Row) -> set[int]:
    """Return the hashes of all three-word sequences of the row. System prompts are ignored: rows often share one."""
    hashes: set[int] = set()
    for variant, texts in _iter_spoken_texts(row):
        words = _split_words(" ".join(texts))
        hashes |= _hash_trigrams(variant, words) if len(words) > 2 else {_hash_words(variant, *words)}
    return hashes


def _iter_spoken_texts(row: Row) -> Iterator[tuple[int, list[str]]]:
    """Yield the texts of each conversation of the row, without system prompts."""
    for number, conversation in enumerate(list_conversations(row)):
        # The same texts with the opposite label are not a duplicate.
        variant = number or (isinstance(row, LabeledExample) and not row.desirable)
        yield (
            int(variant),
            [content for role, content in list_turns(conversation) if role not in ("system", "developer")],
        )


def _split_words(text: str) -> list[str]:
    return _WORD_PATTERN.findall(text.casefold())


def _hash_trigrams(variant: int, words: list[str]) -> set[int]:
    return {_hash_words(variant, a, b, c) for a, b, c in zip(words, words[1:], words[2:], strict=False)}


def _hash_words(variant: int, *words: str) -> int:
    return xxhash.xxh32_intdigest(f"{variant} {' '.join(words)}".encode())


class BoilerplateFinder:
    """Finds texts that many rows share word for word, such as an instruction before each message.

    It uses a sample: the rows with the smallest hashes. The result does not depend on the order of the rows, and equal
    rows count once.
    """

    def __init__(self) -> None:
        self._sampled_rows: dict[int, list[array[int]]] = {}
        """Shingles of each turn, by the hash of the row."""
        self._negated_hashes: list[int] = []
        """Heap of the negated hashes, so that the largest hash comes first."""

    def add(self, row: Row) -> None:
        """Add a row to the sample if its hash is small enough."""
        key = xxhash.xxh3_64_intdigest(serialize_canonical(row))
        is_full = len(self._sampled_rows) == _SAMPLE_ROWS
        if key in self._sampled_rows or (is_full and key >= -self._negated_hashes[0]):
            return
        if is_full:
            del self._sampled_rows[-heapreplace(self._negated_hashes, -key)]
        else:
            heappush(self._negated_hashes, -key)
        self._sampled_rows[key] = _sample_turns(row)

    def find_boilerplate(self) -> frozenset[int]:
        """Return the shingles of the shared texts.

        It is not enough that a shingle is common. Turns with the same instruction have the same set of common shingles,
        while copies of a row with different words changed have different sets.
        """
        if len(self._sampled_rows) < _MIN_ROWS:
            return frozenset()
        return frozenset(self._iter_shared_shingles())

    def _iter_shared_shingles(self) -> Iterator[int]:
        import numpy as np

        rows = [[np.frombuffer(turn, dtype=np.uint32) for turn in row] for row in self._sampled_rows.values() if row]
        row_shingles = [np.unique(np.concatenate(row)) for row in rows]
        values, counts = np.unique(np.concatenate(row_shingles), return_counts=True)
        for share in _COMMON_ROW_SHARES:
            common = values[counts >= max(_MIN_ROWS // 2, share * len(rows))]
            texts = Counter(text for row in rows for text in {turn[np.isin(turn, common)].tobytes() for turn in row})
            for text, count in texts.items():
                if count >= max(_MIN_ROWS, _MIN_ROW_SHARE * len(rows)) and len(text) >= _MIN_SHINGLES * 4:
                    yield from array("I", text)


def _sample_turns(row: Row) -> list[array[int]]:
    return [
        array("I", sorted(_hash_ends(variant, _split_words(turn))))
        for variant, texts in _iter_spoken_texts(row)
        for turn in texts
    ]


def _hash_ends(variant: int, words: list[str]) -> set[int]:
    if len(words) <= 2 * _SAMPLE_WORDS:
        return _hash_trigrams(variant, words)
    return _hash_trigrams(variant, words[:_SAMPLE_WORDS]) | _hash_trigrams(variant, words[-_SAMPLE_WORDS:])
