"""Small objects that several runs write: only where none is there, or only over the very one that was read."""

from __future__ import annotations

from dataclasses import dataclass

import obstore
from botocore import exceptions as boto
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.errors import OUTPUT, code_of, explained
from finetune_trainer.storage.listing import S3Object, list_below, list_directly
from finetune_trainer.storage.locations import Location
from finetune_trainer.storage.upload import interruptibly

_LARGEST = 16 * 2**20
"""Of what is read into memory; a record of ours has a few KiB."""
_UNSUPPORTED = ("NotImplemented", "501")
_CONFLICTS = ("ConditionalRequestConflict", "PreconditionFailed", "409", "412")
_MISSING = ("NoSuchKey", "404")


class NoConditions(Exception):
    """The store says that it has no conditional writes."""


@dataclass(frozen=True)
class Tagged:
    """An object's content and the ETag that stands for it."""

    content: bytes
    etag: str


def read(s3: S3, location: Location) -> bytes | None:
    """A small object's content, or None where there is none."""
    found = read_tagged(s3, location)
    return found.content if found else None


def read_tagged(s3: S3, location: Location) -> Tagged | None:
    """What is there, or None; of a large object the beginning. Unlike obstore, boto3 follows no redirect."""
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, OUTPUT):
        for last in (False, False, True):
            try:
                answer = bucket.client.get_object(Bucket=bucket.name, Key=location.key)
                return Tagged(answer["Body"].read(_LARGEST), answer.get("ETag", ""))
            except boto.ClientError as error:
                if error.response["Error"].get("Code") in _MISSING:
                    return None
                raise
            except boto.HTTPClientError:  # cut off after boto3's own tries
                if last:
                    raise
    return None


def create(s3: S3, location: Location, content: bytes) -> str | None:
    """Write unless something is there; the new ETag, or None if it was refused."""
    return _put(s3, location, content, None)


def replace(s3: S3, location: Location, content: bytes, etag: str) -> str | None:
    """Write over the object with this ETag; the new ETag, or None if it is not there any more."""
    return _put(s3, location, content, etag)


def _put(s3: S3, location: Location, content: bytes, etag: str | None) -> str | None:
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, OUTPUT):
        try:
            return interruptibly(lambda: _put_now(bucket, location.key, content, etag))
        except (AlreadyExistsError, PreconditionError):
            return None
        except (BaseError, FileNotFoundError) as error:
            code = code_of(error)
            if code in _UNSUPPORTED:
                raise NoConditions from error
            if code in _CONFLICTS or (etag is not None and code in _MISSING):
                return None
            raise


def _put_now(bucket: Bucket, key: str, content: bytes, etag: str | None) -> str:
    done = obstore.put(bucket.store, key, content, mode="create" if etag is None else {"e_tag": etag})
    return done["e_tag"] or ""


def remove(s3: S3, locations: list[Location]) -> None:
    """Delete objects one by one (not every store has the bulk call); one that is gone already is fine."""
    for each in locations:
        bucket = s3.bucket(each.bucket)
        with explained(each, bucket.endpoint, OUTPUT):
            bucket.client.delete_object(Bucket=bucket.name, Key=each.key)


def listed(s3: S3, prefix: Location) -> list[S3Object]:
    """All objects below a prefix of the output, which may be none."""
    bucket = s3.bucket(prefix.bucket)
    with explained(prefix, bucket.endpoint, OUTPUT):
        return list(list_below(bucket, prefix))


def listed_directly(s3: S3, prefix: Location) -> list[S3Object]:
    """The objects of a prefix of the output, without those in folders below it."""
    bucket = s3.bucket(prefix.bucket)
    with explained(prefix, bucket.endpoint, OUTPUT):
        return list(list_directly(bucket, prefix))
