"""From a URI to the objects it means, with sizes and ETags, before any byte is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from botocore import exceptions as boto

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.errors import Purpose, explained
from finetune_trainer.storage.locations import Location


@dataclass(frozen=True)
class S3Object:
    """One object as the store announced it."""

    location: Location
    name: str
    """Its key below the URI that it was found with; the local name."""
    size: int
    etag: str
    """Without quotes."""

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""
        return str(self.location)


def find(s3: S3, location: Location, purpose: Purpose) -> list[S3Object]:
    """The objects of a location, sorted by key; none at all is an error."""
    bucket = s3.bucket(location.bucket)
    with explained(location, bucket.endpoint, purpose):
        if location.is_single:
            return [_one(bucket, location, purpose)]
        found = sorted(list_below(bucket, location), key=lambda each: each.location.key)
    if not found:
        kind = "no object matches this pattern" if location.is_pattern else "no object has this prefix"
        raise TrainerError(purpose.missing, f"{location} at {bucket.endpoint}: {kind}; check the URI")
    return found


def _one(bucket: Bucket, location: Location, purpose: Purpose) -> S3Object:
    name = location.key.removeprefix(location.base)
    try:
        head = bucket.client.head_object(Bucket=bucket.name, Key=location.key)
    except boto.ClientError as error:
        _explain_head(bucket, location, purpose, error)
        raise
    if "etag" not in head["ResponseMetadata"]["HTTPHeaders"]:
        message = f"{location} at {bucket.endpoint}: the answer has no ETag; check that storage.endpoint is an S3 store"
        raise TrainerError(Reason.STORAGE_UNREACHABLE, message)
    return S3Object(location, name, head["ContentLength"], head["ETag"].strip('"'))


def _explain_head(bucket: Bucket, location: Location, purpose: Purpose, error: boto.ClientError) -> None:
    """A HEAD's refusal has no body, hence no code; a list of the same key fails for the same cause and names it."""
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=location.key, MaxKeys=1)
    if any(each["Key"] == location.key for each in listed.get("Contents", [])):
        return  # it is there, so the HEAD's own refusal stands
    message = f"{location} at {bucket.endpoint}: there is no such object"
    if listed.get("Contents"):
        message += "; keys that begin so exist: end the URI with '/' to mean all below it"
    raise TrainerError(purpose.missing, message) from error


def list_below(bucket: Bucket, location: Location) -> Iterator[S3Object]:
    """Every object that the location means, as the store lists them."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=location.listed_prefix)
    for page in pages:
        for each in page.get("Contents", []):
            key = each["Key"]
            # A key that ends in '/' is a console's folder marker.
            if not key.endswith("/") and location.matches(key):
                found = Location(bucket.name, key)
                yield S3Object(found, key.removeprefix(location.base), each["Size"], each["ETag"].strip('"'))


def list_directly(bucket: Bucket, prefix: Location) -> Iterator[S3Object]:
    """Every object of a prefix but those in folders below it, however many these hold, and folder markers."""
    pages = bucket.client.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket.name, Prefix=prefix.key, Delimiter="/"):
        for each in page.get("Contents", []):
            name = each["Key"].removeprefix(prefix.key)
            if name:
                yield S3Object(prefix.below(name), name, each["Size"], each["ETag"].strip('"'))
