"""Conditional reads and writes of small objects that several runs share, and lists and deletion at an output."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import obstore
from botocore import exceptions as boto
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.errors import OUTPUT_ERRORS, get_error_code, translate_errors
from finetune_trainer.storage.listing import S3Object, iter_direct_objects, iter_objects
from finetune_trainer.storage.locations import Location
from finetune_trainer.storage.retry import READ_ATTEMPTS, retry_on_error
from finetune_trainer.storage.upload import run_interruptible

_MAX_READ_BYTES = 16 * 2**20
"""Limit of what is read into memory. Records of the trainer have a few KiB."""
_UNSUPPORTED_CODES = ("NotImplemented", "501")
_CONFLICT_CODES = ("ConditionalRequestConflict", "PreconditionFailed", "409", "412")
MISSING_CODES = ("NoSuchKey", "404")


class ConditionalWritesUnsupported(Exception):
    """The store reports that it does not support conditional writes."""


@dataclass(frozen=True)
class ObjectWithETag:
    """The content of an object and its ETag."""

    content: bytes
    etag: str


def read_object(s3: S3, location: Location) -> bytes | None:
    """Return the content of a small object, or None if there is none."""
    stored = read_with_etag(s3, location)
    return stored.content if stored else None


def read_with_etag(s3: S3, location: Location) -> ObjectWithETag | None:
    """Return an object with its ETag, or None if there is none. Of a large object only the beginning is read.

    boto3 reads it because, unlike obstore, it follows no redirects.
    """
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        return retry_on_error(partial(_get_object, bucket, location.key), boto.HTTPClientError, READ_ATTEMPTS)


def _get_object(bucket: Bucket, key: str) -> ObjectWithETag | None:
    try:
        response = bucket.client.get_object(Bucket=bucket.name, Key=key)
    except boto.ClientError as error:
        if error.response["Error"].get("Code") in MISSING_CODES:
            return None
        raise
    content = response["Body"].read(_MAX_READ_BYTES)
    expected = min(response["ContentLength"], _MAX_READ_BYTES)
    if len(content) < expected:  # neither botocore nor urllib3 notices the end of the connection here
        raise boto.ResponseStreamingError(error=f"{len(content)} of {expected} bytes received")
    return ObjectWithETag(content, response.get("ETag", ""))


def create_object(s3: S3, location: Location, content: bytes) -> str | None:
    """Write an object unless one exists. Returns the new ETag, or None if the write was rejected."""
    return _put_conditionally(s3, location, content, None)


def replace_object(s3: S3, location: Location, content: bytes, etag: str) -> str | None:
    """Replace the object with this ETag. Returns the new ETag, or None if the object has changed or is gone."""
    return _put_conditionally(s3, location, content, etag)


def _put_conditionally(s3: S3, location: Location, content: bytes, etag: str | None) -> str | None:
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        try:
            return run_interruptible(lambda: _put_object(bucket, location.key, content, etag))
        except (AlreadyExistsError, PreconditionError):
            return None
        except (BaseError, FileNotFoundError) as error:
            code = get_error_code(error)
            if code in _UNSUPPORTED_CODES:
                raise ConditionalWritesUnsupported from error
            if code in _CONFLICT_CODES or (etag is not None and code in MISSING_CODES):
                return None
            raise


def _put_object(bucket: Bucket, key: str, content: bytes, etag: str | None) -> str:
    result = obstore.put(bucket.store, key, content, mode="create" if etag is None else {"e_tag": etag})
    return result["e_tag"] or ""


def delete_objects(s3: S3, locations: list[Location]) -> None:
    """Delete objects one by one, since not every store has the bulk call. Missing objects are ignored."""
    for location in locations:
        bucket = s3.bucket(location.bucket)
        with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
            bucket.client.delete_object(Bucket=bucket.name, Key=location.key)


def list_objects(s3: S3, prefix: Location) -> list[S3Object]:
    """Return all objects below a prefix of the output, if any."""
    bucket = s3.bucket(prefix.bucket)
    with translate_errors(prefix, bucket.endpoint, OUTPUT_ERRORS):
        return list(iter_objects(bucket, prefix))


def list_direct_objects(s3: S3, prefix: Location) -> list[S3Object]:
    """Return the objects directly below a prefix of the output, without those in its folders."""
    bucket = s3.bucket(prefix.bucket)
    with translate_errors(prefix, bucket.endpoint, OUTPUT_ERRORS):
        return list(iter_direct_objects(bucket, prefix))
