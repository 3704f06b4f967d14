"""Rows that were there before, exactly or nearly, and rows that belong together."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import xxhash

from finetune_trainer.data.row_texts import normalize_prompt, serialize_canonical
from finetune_trainer.data.row_types import LabeledExample, Preference, Row
from finetune_trainer.data.shingles import compute_shingles

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash
    from numpy.typing import NDArray

MAX_NEAR_DUPLICATE_ROWS = 200_000
"""Rows up to which near-duplicates can be looked for: their signatures take about 5 KB of memory each."""
_NUM_PERM = 128
_MIN_RECALL = 0.95
"""Of pairs that resemble each other just as much as the threshold says, at least so many are compared."""
_MAX_BUCKET_ROWS = 32
"""Rows of one bucket that are compared; more of them alike are already of one kind."""
_KEY_BYTES = 16


class HashSet:
    """A set of 128-bit hashes of rows, in a file of 24 to 48 bytes each that is mapped into memory.

    Two of 10^7 rows that differ have the same hash with a probability of 10^-25; with 64 bits it would be 10^-6.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = self._allocate_table(_KEY_BYTES << 10)
        self._count = 0

    def add(self, row: Row) -> bool:
        """Whether the row is new."""
        key = _hash_row(row)
        if not self._insert_key(key):
            return False
        self._count += 1
        if self._count * _KEY_BYTES * 3 > len(self._table) * 2:
            self._grow()
        return True

    def __contains__(self, row: Row) -> bool:
        key = _hash_row(row)
        return self._table[(offset := self._find_slot(key)) : offset + _KEY_BYTES] == key

    def _find_slot(self, key: bytes) -> int:
        """Where the key stands, or else the free place for it."""
        offset = int.from_bytes(key[:8], "little") * _KEY_BYTES % len(self._table)
        while (stored_key := self._table[offset : offset + _KEY_BYTES]) != key and any(stored_key):
            offset = (offset + _KEY_BYTES) % len(self._table)
        return offset

    def _insert_key(self, key: bytes) -> bool:
        offset = self._find_slot(key)
        if self._table[offset : offset + _KEY_BYTES] == key:
            return False
        self._table[offset : offset + _KEY_BYTES] = key
        return True

    def _grow(self) -> None:
        old_table = self._table
        self._table = self._allocate_table(2 * len(old_table))
        for offset in range(0, len(old_table), _KEY_BYTES):
            if any(key := old_table[offset : offset + _KEY_BYTES]):
                self._insert_key(key)
        old_table.close()

    def _allocate_table(self, size: int) -> mmap.mmap:
        with TemporaryFile(dir=self._folder) as file:
            # Not truncate(): a disk that is full shall be an error here, and no signal at the first write.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)


def _hash_row(row: Row) -> bytes:
    return xxhash.xxh3_128_digest(serialize_canonical(row))


class MinHashIndex:
    """Rows by MinHash, to find those that share at least `threshold` of their word sequences (an estimate).

    The shingles of `boilerplate` do not count, but in rows that consist of nothing else.
    """

    def __init__(self, threshold: float, boilerplate: frozenset[int] = frozenset()) -> None:
        self._threshold = threshold
        self._boilerplate = boilerplate
        self._band_size = _choose_band_size(threshold)
        self._signatures: list[NDArray[np.uint32]] = []
        self._newest_rows: dict[int, int] = {}
        """By bucket: the row that came last."""
        self._previous_rows: list[array[int]] = []
        """By row and band: the row of the same bucket that came before, or -1."""

    def compute_signature(self, row: Row) -> NDArray[np.uint32]:
        """The row's MinHash."""
        row_shingles = compute_shingles(row)
        minhash = _create_minhash()
        minhash.clear()  # a copy costs as much as all the rest for a short row
        minhash.update_batch(row_shingles - self._boilerplate or row_shingles)
        values: NDArray[np.uint32] = minhash.hashvalues.astype("uint32")
        return values

    def query(self, signature: NDArray[np.uint32]) -> Iterator[int]:
        """Rows that the signature resembles, by number."""
        compared: set[int] = set()
        for band, bucket in enumerate(self._compute_buckets(signature)):
            for row in self._walk_bucket(band, bucket):
                if row not in compared and self._is_similar(signature, row):
                    yield row
                compared.add(row)

    def insert(self, signature: NDArray[np.uint32]) -> int:
        """One more row; its number, from 0."""
        number = len(self._signatures)
        self._signatures.append(signature)
        previous_rows = array("i")
        for bucket in self._compute_buckets(signature):
            previous_rows.append(self._newest_rows.get(bucket, -1))
            self._newest_rows[bucket] = number
        self._previous_rows.append(previous_rows)
        return number

    def _walk_bucket(self, band: int, bucket: int) -> Iterator[int]:
        row = self._newest_rows.get(bucket, -1)
        for _ in range(_MAX_BUCKET_ROWS):
            if row < 0:
                return
            yield row
            row = self._previous_rows[row][band]

    def _is_similar(self, signature: NDArray[np.uint32], row: int) -> bool:
        return float((self._signatures[row] == signature).mean()) >= self._threshold

    def _compute_buckets(self, signature: NDArray[np.uint32]) -> Iterator[int]:
        signature_bytes, band_bytes = signature.tobytes(), self._band_size * signature.itemsize
        for band in range(_NUM_PERM // self._band_size):
            yield xxhash.xxh3_64_intdigest(signature_bytes[band * band_bytes : (band + 1) * band_bytes], seed=band)


def _choose_band_size(threshold: float) -> int:
    def compute_recall(band_size: int) -> float:
        return 1 - (1 - float(threshold**band_size)) ** (_NUM_PERM // band_size)

    return max((width for width in range(1, 33) if compute_recall(width) >= _MIN_RECALL), default=1)


@cache
def _create_minhash() -> MinHash:
    from datasketch import MinHash

    return MinHash(_NUM_PERM, hashfunc=int)  # shingles are hashes already


class RowGroups:
    """Which rows must stay together: those that resemble each other, or, without `near`, those of one prompt."""

    def __init__(self, near_index: MinHashIndex | None) -> None:
        self._near_index = near_index
        self._first_rows_by_prompt: dict[int, int] = {}
        self._parents = array("q")
        self._prompt_keys = array("Q")

    def add(self, row: Row) -> None:
        """The next row."""
        key = xxhash.xxh3_64_intdigest(normalize_prompt(row).encode())
        if self._near_index is None:
            self._prompt_keys.append(key)
            return
        number = len(self._parents)
        self._parents.append(number)
        signature = self._near_index.compute_signature(row)
        for similar_row in self._near_index.query(signature):
            self._union(number, similar_row)
        self._near_index.insert(signature)
        if isinstance(row, LabeledExample | Preference):  # one prompt has several answers there
            self._union(number, self._first_rows_by_prompt.setdefault(key, number))

    def compute_keys(self) -> array[int]:
        """By row: the same number for rows that stay together."""
        if self._near_index is None:
            return self._prompt_keys
        return array("Q", map(self._find_root, range(len(self._parents))))

    def _find_root(self, row: int) -> int:
        while (parent := self._parents[row]) != row:
            self._parents[row] = self._parents[parent]
            row = parent
        return row

    def _union(self, first_row: int, second_row: int) -> None:
        roots = sorted((self._find_root(first_row), self._find_root(second_row)))
        self._parents[roots[1]] = roots[0]
