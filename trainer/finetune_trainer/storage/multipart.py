"""Aborts unfinished multipart uploads, whose parts a store keeps and bills until they are aborted."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from botocore import exceptions as boto
from obstore.exceptions import BaseError

from finetune_trainer.storage.client import Bucket

log = logging.getLogger(__name__)

_MAX_ABORT_ROUNDS = 8
_ROUND_PAUSE_SECONDS = 0.5
_REQUIRED_CLEAN_ROUNDS = 2
"""Number of consecutive empty lists after which a key counts as clean."""


@contextmanager
def abort_on_failure(bucket: Bucket, key: str) -> Iterator[None]:
    """Abort all unfinished uploads of `key` if the block raises an error of the store or of the local file.

    obstore aborts its upload at once, while other parts may still be in flight. Such a part can make the store keep
    the upload, so S3 asks to list the uploads and to abort again:
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html. All uploads of the key are aborted,
    since an output has one writer.
    """
    try:
        yield
    except (BaseError, OSError):
        try:
            _abort_unfinished_uploads(bucket, key)
        except (boto.ClientError, boto.BotoCoreError) as error:
            log.warning("s3://%s/%s: an unfinished upload may remain: %s", bucket.name, key, error)
        raise


def _abort_unfinished_uploads(bucket: Bucket, key: str) -> None:
    clean_rounds = 0
    for _ in range(_MAX_ABORT_ROUNDS):
        upload_ids = list(_iter_unfinished_uploads(bucket, key))
        clean_rounds = 0 if upload_ids else clean_rounds + 1
        if clean_rounds == _REQUIRED_CLEAN_ROUNDS:
            return
        for upload_id in upload_ids:
            _abort_upload(bucket, key, upload_id)
        time.sleep(_ROUND_PAUSE_SECONDS)
    log.warning("s3://%s/%s: an unfinished upload remains", bucket.name, key)


def _iter_unfinished_uploads(bucket: Bucket, key: str) -> Iterator[str]:
    pages = bucket.client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=key)
    for page in pages:
        yield from (upload["UploadId"] for upload in page.get("Uploads", []) if upload["Key"] == key)


def _abort_upload(bucket: Bucket, key: str, upload_id: str) -> None:
    """Abort an upload. The next list shows whether it is gone."""
    try:
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload_id)
    except boto.ClientError as error:
        log.info("s3://%s/%s: an upload could not be aborted yet: %s", bucket.name, key, error)
