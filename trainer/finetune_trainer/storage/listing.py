"""Lists the objects of a URI with their sizes and ETags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from botocore import exceptions as boto

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.client import S3, Bucket
from finetune_trainer.storage.errors import ErrorMapping, translate_errors
from finetune_trainer.storage.locations import Location, suggest_name


@dataclass(frozen=True)
class S3Object:
    """An object as the store lists it."""

    location: Location
    name: str
    """Key relative to the URI with which it was found; becomes the local name."""
    size: int
    etag: str
    """Without quotes."""

    @property
    def uri(self) -> str:
        """The URI, `s3://bucket/key`."""
        return str(self.location)


def find_objects(s3: S3, location: Location, error_mapping: ErrorMapping) -> list[S3Object]:
    """Return the objects of a location, sorted by key. Raises if there are none."""
    bucket = s3.bucket(location.bucket)
    with translate_errors(location, bucket.endpoint, error_mapping):
        if location.is_single:
            return [_head_object(bucket, location, error_mapping)]
        objects = sorted(iter_objects(bucket, location), key=lambda s3_object: s3_object.location.key)
    if not objects:
        kind = "no object matches this pattern" if location.is_pattern else "no object has this prefix"
        raise TrainerError(error_mapping.missing_reason, f"{location} at {bucket.endpoint}: {kind}; check the URI")
    return objects


def list_candidates(s3: S3, location: Location, error_mapping: ErrorMapping) -> list[S3Object]:
    """Return all objects with the `list_prefix` of a location, sorted by key: those that it matches, and those beside
    them."""
    bucket = s3.bucket(location.bucket)
    prefix = Location(location.bucket, location.list_prefix)
    with translate_errors(location, bucket.endpoint, error_mapping):
        return sorted(iter_objects(bucket, prefix), key=lambda s3_object: s3_object.location.key)


def _head_object(bucket: Bucket, location: Location, error_mapping: ErrorMapping) -> S3Object:
    name = location.key.removeprefix(location.base_prefix)
    try:
        head = bucket.client.head_object(Bucket=bucket.name, Key=location.key)
    except boto.ClientError as error:
        _explain_head_error(bucket, location, error_mapping, error)
        raise
    if "etag" not in head["ResponseMetadata"]["HTTPHeaders"]:
        message = (
            f"{location} at {bucket.endpoint}: the response has no ETag; check that storage.endpoint is an S3 store"
        )
        raise TrainerError(Reason.STORAGE_UNREACHABLE, message)
    return S3Object(location, name, head["ContentLength"], head["ETag"].strip('"'))


def _explain_head_error(
    bucket: Bucket, location: Location, error_mapping: ErrorMapping, error: boto.ClientError
) -> None:
    """Raise a precise error for a failed HEAD: its response has no error code, but a list of the same key has."""
    names = _list_names(bucket, location.key)
    if location.key in names:
        return  # the object exists, so the error of the HEAD is the right one
    if f"{location.key}/" in names:
        advice = "keys with this prefix exist: end the URI with '/' to use all objects below it"
    else:
        advice = suggest_name(location.key, _list_names(bucket, location.base_prefix)) or "check the URI"
    message = f"{location} at {bucket.endpoint}: there is no such object; {advice}"
    raise TrainerError(error_mapping.missing_reason, message) from error


def _list_names(bucket: Bucket, prefix: str) -> list[str]:
    """Return the first keys and folders with a prefix in its folder. The names of folders end with `/`."""
    page = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=prefix, Delimiter="/")
    keys = [entry["Key"] for entry in page.get("Contents", [])]
    return keys + [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]


def iter_objects(bucket: Bucket, location: Location) -> Iterator[S3Object]:
    """Yield the objects of a location in the order of the store."""
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=location.list_prefix)
    for page in pages:
        for entry in page.get("Contents", []):
            key = entry["Key"]
            # A key that ends in '/' is the folder marker of a console.
            if not key.endswith("/") and location.matches(key):
                object_location = Location(bucket.name, key)
                yield S3Object(
                    object_location, key.removeprefix(location.base_prefix), entry["Size"], entry["ETag"].strip('"')
                )


def iter_direct_objects(bucket: Bucket, prefix: Location) -> Iterator[S3Object]:
    """Yield the objects directly below a prefix, without folder markers and without listing its folders."""
    paginator = bucket.client.get_paginator("list_objects_v2")
    for page in paginator.paginate(Bucket=bucket.name, Prefix=prefix.key, Delimiter="/"):
        for entry in page.get("Contents", []):
            name = entry["Key"].removeprefix(prefix.key)
            if name:
                yield S3Object(prefix.child(name), name, entry["Size"], entry["ETag"].strip('"'))
