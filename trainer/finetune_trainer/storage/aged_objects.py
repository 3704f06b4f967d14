"""Lists with ages, by the clock of the store: local clocks may be wrong, and no decision to delete depends on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage.client import S3
from finetune_trainer.storage.errors import OUTPUT_ERRORS, translate_errors
from finetune_trainer.storage.locations import Location


@dataclass(frozen=True)
class AgedObject:
    """A listed object, or an unfinished multipart upload."""

    key: str
    age_seconds: float
    """Seconds since it was last written, or since the upload was started."""
    size: int = 0
    """Size in bytes; 0 for an upload."""
    upload_id: str = ""
    """Identifier of an upload; empty for an object."""


def read_store_time(s3: S3, prefix: Location) -> datetime:
    """Return the current time of the store."""
    bucket = s3.bucket(prefix.bucket)
    with translate_errors(prefix, bucket.endpoint, OUTPUT_ERRORS):
        response = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=prefix.key, MaxKeys=1)
    return _read_time(prefix, response)


def iter_aged_objects(s3: S3, prefix: Location) -> Iterator[AgedObject]:
    """Yield all objects below a prefix, page by page, so that memory does not grow with their number."""
    bucket = s3.bucket(prefix.bucket)
    with translate_errors(prefix, bucket.endpoint, OUTPUT_ERRORS):
        pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix.key)
        for page in pages:
            now = _read_time(prefix, page)
            for entry in page.get("Contents", []):
                yield AgedObject(entry["Key"], _compute_age(now, entry["LastModified"]), entry["Size"])


def iter_aged_uploads(s3: S3, prefix: Location) -> Iterator[AgedObject]:
    """Yield all unfinished multipart uploads below a prefix."""
    bucket = s3.bucket(prefix.bucket)
    with translate_errors(prefix, bucket.endpoint, OUTPUT_ERRORS):
        pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix.key)
        for page in pages:
            now = _read_time(prefix, page)
            for upload in page.get("Uploads", []):
                age_seconds = _compute_age(now, upload["Initiated"])
                yield AgedObject(upload["Key"], age_seconds, upload_id=upload["UploadId"])


def _read_time(prefix: Location, response: Mapping[str, Any]) -> datetime:
    """Return the time of a response. Without one nothing is known to be old, so nothing may be deleted."""
    text = response["ResponseMetadata"]["HTTPHeaders"].get("date", "")
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except ValueError as error:
        message = f"{prefix}: the store sends no valid Date header ({text!r}), so the age of objects is unknown"
        raise TrainerError(Reason.STORAGE_UNREACHABLE, message) from error


def _compute_age(now: datetime, written_at: datetime) -> float:
    return (now - written_at).total_seconds()
