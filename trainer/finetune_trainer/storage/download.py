"""Many objects to disk at once: pinned by ETag, hashed as they arrive, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import obstore

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.errors import Purpose, explained
from finetune_trainer.storage.listing import S3Object
from finetune_trainer.storage.locations import name_problem

if TYPE_CHECKING:
    from io import FileIO

    from obstore import GetOptions, GetResult
    from typing_extensions import Buffer

OBJECTS_AT_ONCE = 16
RANGES_AT_ONCE = 16
RANGE_BYTES = 16 * 2**20
_RANGES_AHEAD = 8  # of one object
_PIECE_BYTES = 2**18


@dataclass(frozen=True)
class InputFile:
    """An object on disk, and what identifies its content."""

    uri: str
    path: Path
    size: int
    etag: str
    sha256: str


def check_space(folder: Path, needed: int) -> None:
    """Refuse before the first byte what cannot fit."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        gib = f"{needed / 2**30:.1f} GiB, {folder} has {free / 2**30:.1f} GiB free"
        raise TrainerError(Reason.DISK_FULL, f"the inputs need {gib}; enlarge the scratch volume (compute.scratch)")


def download(
    s3: S3, objects: Sequence[S3Object], target: Path, purpose: Purpose, on_bytes: Callable[[int], None]
) -> list[InputFile]:
    """Fetch objects of one bucket below `target`, under their names; the result has their order."""
    paths = places(objects, target, purpose)
    stop = threading.Event()

    def count(size: int) -> None:
        s3.moved += size
        on_bytes(size)

    pool, ranges = ThreadPoolExecutor(OBJECTS_AT_ONCE, "object"), ThreadPoolExecutor(RANGES_AT_ONCE, "range")
    try:
        futures = [
            pool.submit(_Fetch(s3.bucket(each.location.bucket), each, purpose, ranges, count, stop).to, path)
            for each, path in zip(objects, paths, strict=True)
        ]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future.done() and future.exception()]
        return [future.result() for future in failed or futures]
    finally:  # after a failure, or when told to stop, nobody waits for what is still under way
        stop.set()
        for each_pool in (pool, ranges):
            each_pool.shutdown(wait=False, cancel_futures=True)


def places(objects: Sequence[S3Object], target: Path, purpose: Purpose) -> list[Path]:
    """Where each object goes. Every name is checked before the first byte is asked for."""
    names = {each.name for each in objects}
    for each in objects:
        problem = name_problem(each.name) or name_problem(each.location.key)
        if not problem and any(folder in names for folder in _folders(each.name)):
            problem = "one of its folders is an object too, and a disk cannot hold both"
        if problem:
            raise TrainerError(purpose.invalid, f"{each.uri}: this key cannot be stored as a file: {problem}")
    return [target / each.name for each in objects]


def read_range(s3: S3, source: S3Object, span: tuple[int, int], purpose: Purpose) -> bytes:
    """Bytes of an object from the first up to the second place, less where it ends before; as it was listed."""
    bucket = s3.bucket(source.location.bucket)
    begin, end = span[0], min(span[1], source.size)
    if begin >= end:
        return b""
    with explained(source.location, bucket.endpoint, purpose):
        return bytes(_get(bucket, source, {"range": (begin, end)}).bytes())


def _get(bucket: Bucket, source: S3Object, options: GetOptions) -> GetResult:
    """Pinned to what was listed; a store that gives no ETag cannot be pinned."""
    if not source.etag:
        return obstore.get(bucket.store, source.location.key, options=options)
    options["if_match"] = f'"{source.etag}"'
    result = obstore.get(bucket.store, source.location.key, options=options)
    # obstore follows redirects, without our signature; whoever answers there knows nothing of the condition.
    if (result.meta["e_tag"] or "").strip('"') != source.etag:
        message = f"{source.uri} at {bucket.endpoint}: the answer is not the object that was listed"
        raise TrainerError(Reason.STORAGE_CORRUPT, message)
    return result


def _folders(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


@dataclass(frozen=True)
class _Fetch:
    bucket: Bucket
    source: S3Object
    purpose: Purpose
    ranges: ThreadPoolExecutor
    on_bytes: Callable[[int], None]
    stop: threading.Event
    """Set when the rest is not needed any more, since another object failed."""

    def to(self, path: Path) -> InputFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}")
        with partial.open("w+b", buffering=0) as file, explained(self.source.uri, self.bucket.endpoint, self.purpose):
            digest = self._in_ranges(file) if self.source.size > RANGE_BYTES else self._at_once(file)
        os.replace(partial, path)
        return InputFile(self.source.uri, path, self.source.size, self.source.etag, digest)

    def _at_once(self, file: FileIO) -> str:
        digest = hashlib.sha256()
        self._write(file, _get(self.bucket, self.source, {}), (0, self.source.size), digest.update)
        return digest.hexdigest()

    def _in_ranges(self, file: FileIO) -> str:
        """Several at once into their places; each is hashed in its turn, while the next ones are under way."""
        size, digest = self.source.size, hashlib.sha256()
        spans = iter([(begin, min(begin + RANGE_BYTES, size)) for begin in range(0, size, RANGE_BYTES)])
        ahead = deque(self.ranges.submit(self._range, file, span) for span in islice(spans, _RANGES_AHEAD))
        while ahead:
            _hash(file, ahead.popleft().result(), digest)
            ahead.extend(self.ranges.submit(self._range, file, span) for span in islice(spans, 1))
        return digest.hexdigest()

    def _range(self, file: FileIO, span: tuple[int, int]) -> tuple[int, int]:
        self._write(file, _get(self.bucket, self.source, {"range": span}), span, lambda _: None)
        return span

    def _write(self, file: FileIO, answer: GetResult, span: tuple[int, int], also: Callable[[Buffer], None]) -> None:
        """As it arrives, in pieces that stay in the processor's cache; whole ranges cost twice the CPU time."""
        at, end = span
        for piece in answer.stream(min_chunk_size=_PIECE_BYTES):
            if self.stop.is_set() or at + len(piece) > end:
                break
            _write_at(file, piece, at)
            also(piece)
            at += len(piece)
            self.on_bytes(len(piece))
        if at != end:
            came = f"{end - span[0]} bytes announced, {at - span[0]} came"
            raise TrainerError(Reason.STORAGE_CORRUPT, f"{self.source.uri} at {self.bucket.endpoint}: {came}")


def _write_at(file: FileIO, piece: Buffer, at: int) -> None:
    rest = memoryview(piece)
    while rest:
        written = os.pwrite(file.fileno(), rest, at)
        rest, at = rest[written:], at + written


def _hash(file: FileIO, span: tuple[int, int], digest: hashlib._Hash) -> None:
    buffer, at = memoryview(bytearray(_PIECE_BYTES)), span[0]
    while at < span[1]:
        count = os.preadv(file.fileno(), [buffer[: span[1] - at]], at)
        digest.update(buffer[:count])
        at += count
