"""Shingles (hashed word sequences) of rows, and detection of boilerplate: texts that many rows share."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from heapq import heappush, heapreplace, nsmallest
from statistics import median

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
"""Minimum number of rows that must have the same text. Fewer rows that share a text may be copies of one row."""
_MIN_ROWS_OF_SMALL_SET = 5
_MIN_SHARE_OF_SMALL_SET = 0.3
_MIN_REST_SHINGLES = 8
"""In a small set, fewer rows are enough if they are a large share, and if their other words differ in more than a
correction: their median number of shingles apart from the text."""
_MIN_SHINGLES = 8
"""Minimum length of boilerplate in shingles. A shorter text cannot make rows near-duplicates."""
_SKETCH_WORDS = 32
_MIN_ANSWER_WORDS = 5
"""Minimum number of different words of answers that are compared. Shorter ones, such as labels, say too little."""
_MIN_ANSWER_SIMILARITY = 0.5
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


def sketch_answers(row: Row) -> array[int]:
    """Return the smallest hashes of the words of the answers: a sample that is the same for the same words."""
    texts = [
        text
        for conversation in list_conversations(row)
        for role, text in list_turns(conversation)
        if role == "assistant"
    ]
    return array("I", nsmallest(_SKETCH_WORDS, {_hash_words(0, word) for word in _split_words(" ".join(texts))}))


def are_answers_similar(first: array[int], second: array[int]) -> bool:
    """Return whether the words of two sketches are mostly the same. Answers of a few words always count as similar."""
    if min(len(first), len(second)) < _MIN_ANSWER_WORDS:
        return True
    sample = sorted({*first, *second})[:_SKETCH_WORDS]
    shared = {*first} & {*second}
    return sum(word in shared for word in sample) >= _MIN_ANSWER_SIMILARITY * len(sample)


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
        if len(self._sampled_rows) < _MIN_ROWS_OF_SMALL_SET:
            return frozenset()
        return frozenset(self._iter_shared_shingles())

    def _iter_shared_shingles(self) -> Iterator[int]:
        import numpy as np

        rows = [[np.frombuffer(turn, dtype=np.uint32) for turn in row] for row in self._sampled_rows.values() if row]
        row_shingles = [np.unique(np.concatenate(row)) for row in rows]
        values, counts = np.unique(np.concatenate(row_shingles), return_counts=True)
        counted_rows = [[(turn, counts[np.searchsorted(values, turn)]) for turn in row] for row in rows]
        thresholds = {max(_MIN_ROWS // 2, share * len(rows)) for share in _COMMON_ROW_SHARES}
        for threshold in sorted({_MIN_ROWS_OF_SMALL_SET // 2, *thresholds}):
            rests: dict[bytes, list[int]] = defaultdict(list)
            for row, shingles in zip(counted_rows, row_shingles, strict=True):
                for text in {turn[turn_counts >= threshold].tobytes() for turn, turn_counts in row}:
                    rests[text].append(len(shingles) - len(text) // 4)
            for text, rest_sizes in rests.items():
                if len(text) >= _MIN_SHINGLES * 4 and _is_shared(rest_sizes, len(rows)):
                    yield from array("I", text)


def _is_shared(rest_sizes: list[int], row_count: int) -> bool:
    """Return whether the rows that have a text are not copies of one row, by the number of their other shingles."""
    if len(rest_sizes) >= max(_MIN_ROWS, _MIN_ROW_SHARE * row_count):
        return True
    is_large_share = len(rest_sizes) >= max(_MIN_ROWS_OF_SMALL_SET, _MIN_SHARE_OF_SMALL_SET * row_count)
    return is_large_share and median(rest_sizes) >= _MIN_REST_SHINGLES


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
