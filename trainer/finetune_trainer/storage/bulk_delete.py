"""Deletion of many objects: up to 1000 per request where the store supports it, otherwise one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import islice

from botocore import exceptions as boto

from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.conditional import MISSING_CODES
from finetune_trainer.storage.errors import OUTPUT_ERRORS, build_response_error, translate_errors
from finetune_trainer.storage.locations import Location

log = logging.getLogger(__name__)

_MAX_KEYS = 1000
"""Maximum number of keys of a request: https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html."""
_UNSUPPORTED_CODES = ("NotImplemented", "501", "MethodNotAllowed", "405", "MissingContentMD5", "InvalidRequest")
"""Error codes of stores without the request, or that want another checksum for it."""


class BulkDeleter:
    """Deletes objects of one bucket. In a versioned bucket this creates delete markers."""

    def __init__(self, s3: S3, bucket_name: str) -> None:
        self._bucket: Bucket = s3.bucket(bucket_name)
        self._has_bulk_request = True

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the objects with these keys, in their order. Missing objects are ignored."""
        iterator = iter(keys)
        while batch := list(islice(iterator, _MAX_KEYS)):
            if not (self._has_bulk_request and self._delete_batch(batch)):
                self._delete_each(batch)

    def _delete_batch(self, keys: Sequence[str]) -> bool:
        """Delete the objects with one request. Returns false if the store does not support it."""
        location = Location(self._bucket.name, keys[0])
        objects = [{"Key": key} for key in keys]
        with translate_errors(location, self._bucket.endpoint, OUTPUT_ERRORS):
            try:
                response = self._bucket.client.delete_objects(
                    Bucket=self._bucket.name,
                    Delete={"Objects": objects, "Quiet": True},  # type: ignore[typeddict-item]
                )
            except boto.ClientError as error:
                if error.response["Error"].get("Code") not in _UNSUPPORTED_CODES:
                    raise
                self._has_bulk_request = False
                log.info("%s: the store cannot delete several objects at once (%s)", location, error)
                return False
        for failure in response.get("Errors", []):
            if failure.get("Code") not in MISSING_CODES:
                subject = f"s3://{self._bucket.name}/{failure.get('Key', '')} at {self._bucket.endpoint}"
                raise build_response_error(subject, failure.get("Code", ""), OUTPUT_ERRORS)
        return True

    def _delete_each(self, keys: Sequence[str]) -> None:
        for key in keys:
            with translate_errors(Location(self._bucket.name, key), self._bucket.endpoint, OUTPUT_ERRORS):
                self._bucket.client.delete_object(Bucket=self._bucket.name, Key=key)
