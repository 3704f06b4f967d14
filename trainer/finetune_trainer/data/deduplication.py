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

from finetune_trainer.data.row_texts import canonical, prompt
from finetune_trainer.data.rows import Judged, Preference, Row
from finetune_trainer.data.shingles import shingles

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash
    from numpy.typing import NDArray

NEAR_LIMIT = 200_000
"""Rows up to which near-duplicates can be looked for: their signatures take about 5 KB of memory each."""
_PERMUTATIONS = 128
_RECALL = 0.95
"""Of pairs that resemble each other just as much as the threshold says, at least so many are compared."""
_CHAIN = 32
"""Rows of one bucket that are compared; more of them alike are already of one kind."""
_KEY = 16


class Hashes:
    """A set of 128-bit hashes of rows, in a file of 24 to 48 bytes each that is mapped into memory.

    Two of 10^7 rows that differ have the same hash with a probability of 10^-25; with 64 bits it would be 10^-6.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._table = self._empty(_KEY << 10)
        self._count = 0

    def add(self, row: Row) -> bool:
        """Whether the row is new."""
        key = _hash(row)
        if not self._insert(key):
            return False
        self._count += 1
        if self._count * _KEY * 3 > len(self._table) * 2:
            self._grow()
        return True

    def __contains__(self, row: Row) -> bool:
        key = _hash(row)
        return self._table[(at := self._slot(key)) : at + _KEY] == key

    def _slot(self, key: bytes) -> int:
        """Where the key stands, or else the free place for it."""
        at = int.from_bytes(key[:8], "little") * _KEY % len(self._table)
        while (there := self._table[at : at + _KEY]) != key and any(there):
            at = (at + _KEY) % len(self._table)
        return at

    def _insert(self, key: bytes) -> bool:
        at = self._slot(key)
        if self._table[at : at + _KEY] == key:
            return False
        self._table[at : at + _KEY] = key
        return True

    def _grow(self) -> None:
        old = self._table
        self._table = self._empty(2 * len(old))
        for at in range(0, len(old), _KEY):
            if any(key := old[at : at + _KEY]):
                self._insert(key)
        old.close()

    def _empty(self, size: int) -> mmap.mmap:
        with TemporaryFile(dir=self._folder) as file:
            # Not truncate(): a disk that is full shall be an error here, and no signal at the first write.
            os.posix_fallocate(file.fileno(), 0, size)
            return mmap.mmap(file.fileno(), size)


def _hash(row: Row) -> bytes:
    return xxhash.xxh3_128_digest(canonical(row))


class Near:
    """Rows by MinHash, to find those that share at least `threshold` of their word sequences (an estimate).

    The shingles of `boilerplate` do not count, but in rows that consist of nothing else.
    """

    def __init__(self, threshold: float, boilerplate: frozenset[int] = frozenset()) -> None:
        self._threshold = threshold
        self._boilerplate = boilerplate
        self._width = _band_width(threshold)
        self._signatures: list[NDArray[np.uint32]] = []
        self._latest: dict[int, int] = {}
        """By bucket: the row that came last."""
        self._before: list[array[int]] = []
        """By row and band: the row of the same bucket that came before, or -1."""

    def signature(self, row: Row) -> NDArray[np.uint32]:
        """The row's MinHash."""
        found = shingles(row)
        made = _minhash()
        made.clear()  # a copy costs as much as all the rest for a short row
        made.update_batch(found - self._boilerplate or found)
        values: NDArray[np.uint32] = made.hashvalues.astype("uint32")
        return values

    def like(self, signature: NDArray[np.uint32]) -> Iterator[int]:
        """Rows that the signature resembles, by number."""
        compared: set[int] = set()
        for band, bucket in enumerate(self._buckets(signature)):
            for row in self._chain(band, bucket):
                if row not in compared and self._resembles(signature, row):
                    yield row
                compared.add(row)

    def add(self, signature: NDArray[np.uint32]) -> int:
        """One more row; its number, from 0."""
        number = len(self._signatures)
        self._signatures.append(signature)
        before = array("i")
        for bucket in self._buckets(signature):
            before.append(self._latest.get(bucket, -1))
            self._latest[bucket] = number
        self._before.append(before)
        return number

    def _chain(self, band: int, bucket: int) -> Iterator[int]:
        row = self._latest.get(bucket, -1)
        for _ in range(_CHAIN):
            if row < 0:
                return
            yield row
            row = self._before[row][band]

    def _resembles(self, signature: NDArray[np.uint32], row: int) -> bool:
        return float((self._signatures[row] == signature).mean()) >= self._threshold

    def _buckets(self, signature: NDArray[np.uint32]) -> Iterator[int]:
        values, size = signature.tobytes(), self._width * signature.itemsize
        for band in range(_PERMUTATIONS // self._width):
            yield xxhash.xxh3_64_intdigest(values[band * size : (band + 1) * size], seed=band)


def _band_width(threshold: float) -> int:
    def recall(width: int) -> float:
        return 1 - (1 - float(threshold**width)) ** (_PERMUTATIONS // width)

    return max((width for width in range(1, 33) if recall(width) >= _RECALL), default=1)


@cache
def _minhash() -> MinHash:
    from datasketch import MinHash

    return MinHash(_PERMUTATIONS, hashfunc=int)  # shingles are hashes already


class Groups:
    """Which rows must stay together: those that resemble each other, or, without `near`, those of one prompt."""

    def __init__(self, near: Near | None) -> None:
        self._near = near
        self._prompts: dict[int, int] = {}
        self._parents = array("q")
        self._keys = array("Q")

    def add(self, row: Row) -> None:
        """The next row."""
        key = xxhash.xxh3_64_intdigest(prompt(row).encode())
        if self._near is None:
            self._keys.append(key)
            return
        number = len(self._parents)
        self._parents.append(number)
        mine = self._near.signature(row)
        for other in self._near.like(mine):
            self._join(number, other)
        self._near.add(mine)
        if isinstance(row, Judged | Preference):  # one prompt has several answers there
            self._join(number, self._prompts.setdefault(key, number))

    def keys(self) -> array[int]:
        """By row: the same number for rows that stay together."""
        if self._near is None:
            return self._keys
        return array("Q", map(self._root, range(len(self._parents))))

    def _root(self, row: int) -> int:
        while (parent := self._parents[row]) != row:
            self._parents[row] = self._parents[parent]
            row = parent
        return row

    def _join(self, one: int, other: int) -> None:
        roots = sorted((self._root(one), self._root(other)))
        self._parents[roots[1]] = roots[0]
