"""Concurrent downloads of objects: pinned by ETag, hashed on arrival, complete or not at all."""

from __future__ import annotations

import hashlib
import os
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
from finetune_trainer.storage.errors import ErrorMapping, translate_errors
from finetune_trainer.storage.listing import S3Object
from finetune_trainer.storage.locations import find_name_problem

if TYPE_CHECKING:
    from io import FileIO

    from obstore import GetOptions, GetResult
    from typing_extensions import Buffer

MAX_CONCURRENT_OBJECTS = 16
MAX_CONCURRENT_RANGES = 16
RANGE_BYTES = 16 * 2**20
_MAX_PENDING_RANGES = 8  # of one object
_CHUNK_BYTES = 2**18


@dataclass(frozen=True)
class InputFile:
    """A downloaded object with its ETag and digest."""

    uri: str
    path: Path
    size: int
    etag: str
    sha256: str
    modified_ns: int | None = None
    """Time of the last change before the file was hashed, in nanoseconds, if the file is read in place."""


def download_objects(
    s3: S3, objects: Sequence[S3Object], target: Path, error_mapping: ErrorMapping, on_bytes: Callable[[int], None]
) -> list[InputFile]:
    """Download objects to `target`, under their names. Returns the files in the order of the objects."""
    paths = resolve_local_paths(objects, target, error_mapping)
    cancelled = threading.Event()

    def count_bytes(size: int) -> None:
        s3.bytes_transferred += size
        on_bytes(size)

    object_pool, range_pool = (
        ThreadPoolExecutor(MAX_CONCURRENT_OBJECTS, "object"),
        ThreadPoolExecutor(MAX_CONCURRENT_RANGES, "range"),
    )
    try:
        futures = [
            object_pool.submit(
                _ObjectDownload(
                    s3.bucket(s3_object.location.bucket), s3_object, error_mapping, range_pool, count_bytes, cancelled
                ).save_to,
                path,
            )
            for s3_object, path in zip(objects, paths, strict=True)
        ]
        wait(futures, return_when=FIRST_EXCEPTION)
        failed_futures = [future for future in futures if future.done() and future.exception()]
        return [future.result() for future in failed_futures or futures]
    finally:  # after a failure or a stop signal, do not wait for other downloads
        cancelled.set()
        for executor in (object_pool, range_pool):
            executor.shutdown(wait=False, cancel_futures=True)


def resolve_local_paths(objects: Sequence[S3Object], target: Path, error_mapping: ErrorMapping) -> list[Path]:
    """Return the path of each object. Raises for names that cannot be stored, before anything is downloaded."""
    names = {s3_object.name for s3_object in objects}
    for each in objects:
        problem = find_name_problem(each.name) or find_name_problem(each.location.key)
        if not problem and any(folder in names for folder in _iter_parent_folders(each.name)):
            problem = "one of its folders is also an object, and a file system cannot hold both"
        if problem:
            raise TrainerError(
                error_mapping.invalid_reason, f"{each.uri}: this key cannot be stored as a file: {problem}"
            )
    return [target / each.name for each in objects]


def read_range(s3: S3, s3_object: S3Object, byte_range: tuple[int, int], error_mapping: ErrorMapping) -> bytes:
    """Return bytes `[begin, end)` of an object as it was listed, fewer if the object is shorter."""
    bucket = s3.bucket(s3_object.location.bucket)
    begin, end = byte_range[0], min(byte_range[1], s3_object.size)
    if begin >= end:
        return b""
    with translate_errors(s3_object.location, bucket.endpoint, error_mapping):
        return bytes(_get_pinned(bucket, s3_object, {"range": (begin, end)}).bytes())


def _get_pinned(bucket: Bucket, s3_object: S3Object, options: GetOptions) -> GetResult:
    """Get an object, pinned to the listed ETag. Not pinned if the store does not report ETags."""
    if not s3_object.etag:
        return obstore.get(bucket.store, s3_object.location.key, options=options)
    options["if_match"] = f'"{s3_object.etag}"'
    result = obstore.get(bucket.store, s3_object.location.key, options=options)
    # obstore follows redirects, without the signature. The other host need not know the condition.
    if (result.meta["e_tag"] or "").strip('"') != s3_object.etag:
        message = f"{s3_object.uri} at {bucket.endpoint}: the response is not the object that was listed"
        raise TrainerError(Reason.STORAGE_CORRUPT, message)
    return result


def _iter_parent_folders(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


@dataclass(frozen=True)
class _ObjectDownload:
    bucket: Bucket
    s3_object: S3Object
    error_mapping: ErrorMapping
    range_pool: ThreadPoolExecutor
    on_bytes: Callable[[int], None]
    cancelled: threading.Event
    """Set when another object has failed, so that the rest is not needed."""

    def save_to(self, path: Path) -> InputFile:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f".partial-{hashlib.sha256(path.name.encode()).hexdigest()[:16]}")
        with (
            partial_path.open("w+b", buffering=0) as file,
            translate_errors(self.s3_object.uri, self.bucket.endpoint, self.error_mapping),
        ):
            digest = self._download_ranges(file) if self.s3_object.size > RANGE_BYTES else self._download_whole(file)
        os.replace(partial_path, path)
        return InputFile(self.s3_object.uri, path, self.s3_object.size, self.s3_object.etag, digest)

    def _download_whole(self, file: FileIO) -> str:
        digest = hashlib.sha256()
        self._write_stream(file, _get_pinned(self.bucket, self.s3_object, {}), (0, self.s3_object.size), digest.update)
        return digest.hexdigest()

    def _download_ranges(self, file: FileIO) -> str:
        """Download several ranges concurrently and hash them in order."""
        size, digest = self.s3_object.size, hashlib.sha256()
        byte_ranges = iter([(begin, min(begin + RANGE_BYTES, size)) for begin in range(0, size, RANGE_BYTES)])
        pending = deque(
            self.range_pool.submit(self._download_range, file, byte_range)
            for byte_range in islice(byte_ranges, _MAX_PENDING_RANGES)
        )
        while pending:
            _hash_range(file, pending.popleft().result(), digest)
            pending.extend(
                self.range_pool.submit(self._download_range, file, byte_range) for byte_range in islice(byte_ranges, 1)
            )
        return digest.hexdigest()

    def _download_range(self, file: FileIO, byte_range: tuple[int, int]) -> tuple[int, int]:
        self._write_stream(
            file, _get_pinned(self.bucket, self.s3_object, {"range": byte_range}), byte_range, lambda _: None
        )
        return byte_range

    def _write_stream(
        self, file: FileIO, response: GetResult, byte_range: tuple[int, int], on_chunk: Callable[[Buffer], None]
    ) -> None:
        """Write chunks as they arrive. They fit into the CPU cache; complete ranges take twice the CPU time."""
        offset, end = byte_range
        is_longer = False
        for chunk in response.stream(min_chunk_size=_CHUNK_BYTES):
            is_longer = offset + len(chunk) > end
            if self.cancelled.is_set() or is_longer:
                break
            _write_at_offset(file, chunk, offset)
            on_chunk(chunk)
            offset += len(chunk)
            self.on_bytes(len(chunk))
        if offset != end:
            received = "more" if is_longer else str(offset - byte_range[0])
            mismatch = f"expected {end - byte_range[0]} bytes, received {received}"
            raise TrainerError(Reason.STORAGE_CORRUPT, f"{self.s3_object.uri} at {self.bucket.endpoint}: {mismatch}")


def _write_at_offset(file: FileIO, chunk: Buffer, offset: int) -> None:
    remaining = memoryview(chunk)
    while remaining:
        written = os.pwrite(file.fileno(), remaining, offset)
        remaining, offset = remaining[written:], offset + written


def _hash_range(file: FileIO, byte_range: tuple[int, int], digest: hashlib._Hash) -> None:
    buffer, offset = memoryview(bytearray(_CHUNK_BYTES)), byte_range[0]
    while offset < byte_range[1]:
        count = os.preadv(file.fileno(), [buffer[: byte_range[1] - offset]], offset)
        digest.update(buffer[:count])
        offset += count
