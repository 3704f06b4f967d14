"""Exact duplicates (hash set), near-duplicates (MinHash with LSH), and groups of similar rows."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import xxhash

from finetune_trainer.data.row_texts import normalize_prompt, serialize_canonical
from finetune_trainer.data.row_types import LabeledExample, Preference, Row
from finetune_trainer.data.shingles import are_answers_similar, compute_shingles, sketch_answers

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash
    from numpy.typing import NDArray

MAX_NEAR_DUPLICATE_ROWS = 200_000
"""Maximum number of rows for near-duplicate search. Each row takes about 5 KB of memory for its signature."""
_NUM_PERM = 128
_MIN_RECALL = 0.95
"""Minimum probability that a pair of rows with a similarity equal to the threshold shares a bucket."""
_MAX_BUCKET_ROWS = 32
"""Maximum number of rows that are compared in one bucket. Rows of a larger bucket are most likely all similar."""
_KEY_BYTES = 16


class HashSet:
    """Set of rows, stored as 128-bit hashes in a memory-mapped file with 24 to 48 bytes per row.

    The probability that any two of 10^7 different rows share a hash is 10^-25. With 64 bits it would be 10^-6.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = self._allocate_table(_KEY_BYTES << 10)
        self._count = 0

    def add(self, row: Row) -> bool:
        """Add a row. Return whether it is new."""
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
        """Return the offset of the key, or of the free slot for it. Linear probing."""
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
            # Not truncate(): a full disk must raise an error here instead of SIGBUS at the first write.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)


def _hash_row(row: Row) -> bytes:
    return xxhash.xxh3_128_digest(serialize_canonical(row))


class MinHashIndex:
    """Index of rows by MinHash, to find rows whose estimated Jaccard similarity is at least `threshold`.

    Similarity is measured on shingles (word sequences). The shingles in `boilerplate` are ignored, except in rows
    that consist of nothing else. Locality-sensitive hashing divides each signature into bands and compares only rows
    that share a bucket in some band; see chapter 3 of Leskovec, Rajaraman, Ullman: Mining of Massive Datasets,
    http://www.mmds.org.
    """

    def __init__(self, threshold: float, boilerplate: frozenset[int] = frozenset()) -> None:
        self._threshold = threshold
        self._boilerplate = boilerplate
        self._band_size = _choose_band_size(threshold)
        self._signatures: list[NDArray[np.uint32]] = []
        self._newest_rows: dict[int, int] = {}
        """Number of the newest row, by bucket."""
        self._previous_rows: list[array[int]] = []
        """Number of the previous row in the same bucket or -1, by row and band."""

    def compute_signature(self, row: Row) -> NDArray[np.uint32]:
        """Return the MinHash signature of the row, in shape (permutations,)."""
        row_shingles = compute_shingles(row)
        minhash = _create_minhash()
        minhash.clear()  # a new object would cost as much as the rest for a short row
        minhash.update_batch(row_shingles - self._boilerplate or row_shingles)
        values: NDArray[np.uint32] = minhash.hashvalues.astype("uint32")
        return values

    def query(self, signature: NDArray[np.uint32]) -> Iterator[int]:
        """Yield the numbers of the rows that are similar to the signature."""
        compared: set[int] = set()
        for band, bucket in enumerate(self._compute_buckets(signature)):
            for row in self._walk_bucket(band, bucket):
                if row not in compared and self._is_similar(signature, row):
                    yield row
                compared.add(row)

    def insert(self, signature: NDArray[np.uint32]) -> int:
        """Add a row. Return its number, counted from 0."""
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
    """Return the largest band size, which means the fewest comparisons, that has the required recall.

    With b bands of r values, a pair of similarity s shares a bucket with probability 1 - (1 - s^r)^b; see section 3.4.2
    of Mining of Massive Datasets.
    """

    def compute_recall(band_size: int) -> float:
        return 1 - (1 - float(threshold**band_size)) ** (_NUM_PERM // band_size)

    return max((width for width in range(1, 33) if compute_recall(width) >= _MIN_RECALL), default=1)


@cache
def _create_minhash() -> MinHash:
    from datasketch import MinHash

    return MinHash(_NUM_PERM, hashfunc=int)  # shingles are already hashes


@dataclass(frozen=True)
class DuplicateIndex:
    """Rows of one split, to find duplicates among them. An index that is not needed is None."""

    exact: HashSet | None
    near: MinHashIndex | None
    answer_sketches: list[array[int]] = field(default_factory=list)
    """Sketches of the answers of each row in `near`."""

    def contains(self, row: Row) -> bool:
        """Return whether exactly this row is in the index."""
        return self.exact is not None and row in self.exact

    def add(self, row: Row) -> bool:
        """Add the row to the exact index. Return whether it is new."""
        return self.exact is None or self.exact.add(row)

    def contains_near(self, signature: NDArray[np.uint32], answer_sketch: array[int]) -> bool:
        """Return whether a row with this signature and similar answers is in the index.

        Rows with the same context or instruction but other answers are not near duplicates.
        """
        return self.near is not None and any(
            are_answers_similar(answer_sketch, self.answer_sketches[row]) for row in self.near.query(signature)
        )


@dataclass(frozen=True)
class DuplicateFilter:
    """Finds the reason to reject a row that repeats an earlier row of its split or a row of a held-out split."""

    index: DuplicateIndex
    rejects_duplicates: bool
    """Whether exact duplicates within the split are rejected."""
    held_out: Sequence[DuplicateIndex] = ()
    """Rows of the splits that must have no row in common with this one."""

    def find_exact(self, row: Row) -> str | None:
        """Return `leaked`, `duplicate` or None, and add the row to the index."""
        if any(index.contains(row) for index in self.held_out):
            return "leaked"
        is_new = self.index.add(row)
        return "duplicate" if self.rejects_duplicates and not is_new else None

    def find_near(self, row: Row) -> str | None:
        """Return `leaked`, `nearDuplicate` or None. Add the row to the index if it is neither."""
        if self.index.near is None:
            return None
        signature, answer_sketch = self.index.near.compute_signature(row), sketch_answers(row)
        if any(index.contains_near(signature, answer_sketch) for index in self.held_out):
            return "leaked"
        if self.index.contains_near(signature, answer_sketch):
            return "nearDuplicate"
        self.index.near.insert(signature)
        self.index.answer_sketches.append(answer_sketch)
        return None


class RowGroups:
    """Groups of rows that must stay in the same split: similar rows, or without `near_index` rows with the same prompt.

    The groups are a union-find forest in one array. `scipy.cluster.hierarchy.DisjointSet` takes twice the time and
    17 times the memory (26 MiB instead of 1.5 MiB for 10^5 rows).
    """

    def __init__(self, near_index: MinHashIndex | None) -> None:
        self._near_index = near_index
        self._first_rows_by_prompt: dict[int, int] = {}
        self._parents = array("q")
        self._prompt_keys = array("Q")

    def add(self, row: Row) -> None:
        """Add the next row."""
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
        if isinstance(row, LabeledExample | Preference):  # such data has several answers to one prompt
            self._union(number, self._first_rows_by_prompt.setdefault(key, number))

    def compute_keys(self) -> array[int]:
        """Return a group key for each row. Rows of one group have the same key."""
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
