"""Uploads of files and small objects. Nothing is deleted here."""

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
from finetune_trainer.storage.errors import OUTPUT_ERRORS, translate_errors
from finetune_trainer.storage.locations import Location
from finetune_trainer.storage.multipart import abort_on_failure

if TYPE_CHECKING:
    from io import FileIO

_PART_BYTES = 8 * 2**20  # S3 takes 10,000 parts: files up to 78 GiB
_MAX_CONCURRENT_PARTS = 4
_CHUNK_BYTES = 2**20
_EXECUTOR = ThreadPoolExecutor(4, "store")

_T = TypeVar("_T")


def put_file(s3: S3, location: Location, path: Path) -> str:
    """Upload a file, in parts if it is large. Returns the sha256 of what was sent.

    The object appears complete or not at all, and no parts remain in the store if the upload fails.
    """
    bucket, digest = s3.bucket(location.bucket), hashlib.sha256()
    put = partial(obstore.put, chunk_size=_PART_BYTES, max_concurrency=_MAX_CONCURRENT_PARTS)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS), path.open("rb", buffering=0) as file:
        chunks = _read_chunks(file, digest, s3)
        # obstore uploads an iterator in parts even if it is short, which takes three requests.
        is_multipart = path.stat().st_size > _PART_BYTES
        content = chunks if is_multipart else b"".join(chunks)
        with abort_on_failure(bucket, location.key) if is_multipart else nullcontext():
            run_interruptible(lambda: put(bucket.store, location.key, content))
    return digest.hexdigest()


def _read_chunks(file: FileIO, digest: hashlib._Hash, s3: S3) -> Iterator[bytes]:
    """Yield the file in chunks, hashed and counted. The next are read when earlier parts have been sent."""
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        s3.bytes_transferred += len(chunk)
        yield chunk


def put_bytes(s3: S3, location: Location, content: bytes) -> None:
    """Write a small object, or replace it."""
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        run_interruptible(lambda: obstore.put(bucket.store, location.key, content))


def put_if_absent(s3: S3, location: Location, content: bytes) -> bool:
    """Write a small object unless one exists. Of several concurrent writers exactly one gets true."""
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        try:
            run_interruptible(lambda: obstore.put(bucket.store, location.key, content, mode="create"))
        except AlreadyExistsError:
            return False
    return True


def get_object_size(s3: S3, location: Location) -> int:
    """Return the size of an object in the store, in bytes."""
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        return bucket.client.head_object(Bucket=bucket.name, Key=location.key)["ContentLength"]


def run_interruptible(call: Callable[[], _T]) -> _T:
    """Call in another thread: Python handles no signals while the main thread is in obstore, for up to a minute."""
    return _EXECUTOR.submit(call).result()
