"""Objects out: files whole, the last one only if nobody else's is there. No object is deleted here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError

from finetune_trainer.storage.client import S3
from finetune_trainer.storage.errors import OUTPUT, explained
from finetune_trainer.storage.locations import Location
from finetune_trainer.storage.multipart import aborted_on_failure

if TYPE_CHECKING:
    from io import FileIO

_PART_BYTES = 8 * 2**20  # S3 takes 10,000 parts: files up to 78 GiB
_PARTS_AT_ONCE = 4
_PIECE_BYTES = 2**20
_THREADS = ThreadPoolExecutor(4, "store")

_T = TypeVar("_T")


def put_file(s3: S3, location: Location, path: Path) -> str:
    """Upload a file, in parts if it is large; it appears whole or not at all, and no part of it stays in the store if
    the upload fails. Returns the sha256 of what was sent."""
    bucket, digest = s3.bucket(location.bucket), hashlib.sha256()
    put = partial(obstore.put, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
    with explained(location, bucket.endpoint, OUTPUT), path.open("rb", buffering=0) as file:
        pieces = _pieces(file, digest, s3)
        # An iterator would go in parts however short it is, which is three requests.
        in_parts = path.stat().st_size > _PART_BYTES
        content = pieces if in_parts else b"".join(pieces)
        with aborted_on_failure(bucket, location.key) if in_parts else nullcontext():
            interruptibly(lambda: put(bucket.store, location.key, content))
    return digest.hexdigest()


def _pieces(file: FileIO, digest: hashlib._Hash, s3: S3) -> Iterator[bytes]:
    """Hashed on the way, and counted: the next are read when earlier parts have been sent."""
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
        s3.moved += len(piece)
        yield piece


def put_bytes(s3: S3, location: Location, content: bytes) -> None:
    """Write a small object, replacing one that is there."""
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, OUTPUT):
        interruptibly(lambda: obstore.put(bucket.store, location.key, content))


def put_if_absent(s3: S3, location: Location, content: bytes) -> bool:
    """Write a small object unless one is there; of many writers at once exactly one gets True."""
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, OUTPUT):
        try:
            interruptibly(lambda: obstore.put(bucket.store, location.key, content, mode="create"))
        except AlreadyExistsError:
            return False
    return True


def size_of(s3: S3, location: Location) -> int:
    """How large the store says an object is."""
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, OUTPUT):
        return bucket.client.head_object(Bucket=bucket.name, Key=location.key)["ContentLength"]


def interruptibly(call: Callable[[], _T]) -> _T:
    """Call in another thread: Python handles no signal while its main thread is inside obstore, for up to a minute."""
    return _THREADS.submit(call).result()
