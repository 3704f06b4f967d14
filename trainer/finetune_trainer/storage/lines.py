"""Reads objects line by line, which may be larger than the memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from botocore import exceptions as boto

from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.conditional import MISSING_CODES
from finetune_trainer.storage.errors import OUTPUT_ERRORS, translate_errors
from finetune_trainer.storage.locations import Location
from finetune_trainer.storage.retry import READ_ATTEMPTS, retry_on_error

_CHUNK_BYTES = 2**16

_T = TypeVar("_T")


def parse_lines(s3: S3, location: Location, parse: Callable[[bytes], _T]) -> list[_T] | None:
    """Return what `parse` makes of each line of an object, or None if there is no object.

    After a broken connection, the object is read again from its beginning.
    """
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, OUTPUT_ERRORS):
        read = partial(_parse_lines, bucket, location.key, parse)
        return retry_on_error(read, boto.HTTPClientError, READ_ATTEMPTS)


def _parse_lines(bucket: Bucket, key: str, parse: Callable[[bytes], _T]) -> list[_T] | None:
    try:
        body = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"]
    except boto.ClientError as error:
        if error.response["Error"].get("Code") in MISSING_CODES:
            return None
        raise
    try:
        return [parse(line) for line in body.iter_lines(_CHUNK_BYTES) if line]
    except boto.IncompleteReadError as error:  # botocore checks the length itself, with an error of its own
        raise boto.ResponseStreamingError(error=error) from error
