"""Word sequences of rows (shingles), and those that belong to a text which many rows share."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from heapq import heappush, heapreplace

import xxhash

from finetune_trainer.data.row_texts import canonical, conversations, turns
from finetune_trainer.data.rows import Judged, Row

_SAMPLE_ROWS = 1000
_SAMPLE_WORDS = 2048
"""Words of a sampled turn that count, at its start and at its end."""
_COMMON_SHARES = (0.05, 0.9)
"""Shares of the rows from which a shingle counts as common. The second finds the part of an instruction that all rows
have, where the rest of it varies, as examples chosen at random do."""
_SHARE = 0.05
"""Share of the rows that must have the same text."""
_MIN_ROWS = 12
"""Rows that must have the same text. Fewer rows that share most of their words are copies of one."""
_MIN_SHINGLES = 8
"""Length of a text that can make rows near-duplicates: what differs in them has at least one shingle each."""
# A character each of the scripts without spaces; else a word.
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORDS = re.compile(rf"[{_NO_SPACES}]|[^\W{_NO_SPACES}]+")


def shingles(row: Row) -> set[int]:
    """Hashes of the row's sequences of three words, without system prompts: all rows may have the same long one."""
    found: set[int] = set()
    for verdict, spoken in _spoken(row):
        words = _words(" ".join(spoken))
        found |= _hashes(verdict, words) if len(words) > 2 else {_hash(verdict, *words)}
    return found


def _spoken(row: Row) -> Iterator[tuple[int, list[str]]]:
    """What is said in each conversation of the row."""
    for number, conversation in enumerate(conversations(row)):
        # The opposite verdict on the same words is no duplicate.
        verdict = number or (isinstance(row, Judged) and not row.good)
        yield int(verdict), [content for role, content in turns(conversation) if role not in ("system", "developer")]


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())


def _hashes(verdict: int, words: list[str]) -> set[int]:
    return {_hash(verdict, a, b, c) for a, b, c in zip(words, words[1:], words[2:], strict=False)}


def _hash(verdict: int, *words: str) -> int:
    return xxhash.xxh32_intdigest(f"{verdict} {' '.join(words)}".encode())


class BoilerplateFinder:
    """Finds texts that many rows share word for word, such as an instruction before each message.

    It looks at a sample: the rows with the smallest hashes. So the order of the rows does not matter, and equal rows
    count once.
    """

    def __init__(self) -> None:
        self._rows: dict[int, list[array[int]]] = {}
        """By hash of the row: the shingles of each turn."""
        self._largest: list[int] = []
        """The hashes, negated: the largest one is the heap's first."""

    def add(self, row: Row) -> None:
        """Consider one more row."""
        key = xxhash.xxh3_64_intdigest(canonical(row))
        full = len(self._rows) == _SAMPLE_ROWS
        if key in self._rows or (full and key >= -self._largest[0]):
            return
        if full:
            del self._rows[-heapreplace(self._largest, -key)]
        else:
            heappush(self._largest, -key)
        self._rows[key] = _sampled(row)

    def boilerplate(self) -> frozenset[int]:
        """The shingles of the shared texts.

        That many rows have a shingle is not enough. The turns of one instruction have the same common shingles; copies
        of one row that each have another word changed differ in them.
        """
        if len(self._rows) < _MIN_ROWS:
            return frozenset()
        return frozenset(shingle for share in _COMMON_SHARES for shingle in self._shared_texts(share))

    def _shared_texts(self, common_share: float) -> Iterator[int]:
        import numpy as np

        rows = [[np.frombuffer(turn, dtype=np.uint32) for turn in row] for row in self._rows.values() if row]
        of_rows = [np.unique(np.concatenate(row)) for row in rows]
        values, counts = np.unique(np.concatenate(of_rows), return_counts=True)
        common = values[counts >= max(_MIN_ROWS // 2, common_share * len(rows))]
        texts = Counter(text for row in rows for text in {turn[np.isin(turn, common)].tobytes() for turn in row})
        for text, count in texts.items():
            if count >= max(_MIN_ROWS, _SHARE * len(rows)) and len(text) >= _MIN_SHINGLES * 4:
                yield from array("I", text)


def _sampled(row: Row) -> list[array[int]]:
    return [array("I", sorted(_ends(verdict, _words(turn)))) for verdict, spoken in _spoken(row) for turn in spoken]


def _ends(verdict: int, words: list[str]) -> set[int]:
    if len(words) <= 2 * _SAMPLE_WORDS:
        return _hashes(verdict, words)
    return _hashes(verdict, words[:_SAMPLE_WORDS]) | _hashes(verdict, words[-_SAMPLE_WORDS:])
