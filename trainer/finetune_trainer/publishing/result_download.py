"""Downloads the files of a published result, and verifies each against its manifest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import MANIFEST_NAME, MERGED_PREFIX, FileRecord, PublishedFiles
from finetune_trainer.storage import MODEL_ERRORS, S3, Location, S3Object, download_objects


def list_adapter_files(prefix: Location, manifest: bytes) -> list[FileRecord]:
    """Return the files of the adapter that a manifest lists. Raises `MODEL_INVALID` if it cannot be read."""
    try:
        files = PublishedFiles.model_validate_json(manifest).files
    except ValidationError as error:
        message = f"{prefix.child(MANIFEST_NAME)} is no manifest that this version can read"
        raise TrainerError(Reason.MODEL_INVALID, message) from error
    return [file for file in files if not file.path.startswith(MERGED_PREFIX)]


def download_files(s3: S3, prefix: Location, files: Iterable[FileRecord], target: Path) -> None:
    """Download files of a manifest to `target`. Raises `STORAGE_CORRUPT` if one has another digest."""
    records = list(files)
    # Without an ETag, no request is needed to find out the current one: the digest identifies the content.
    objects = [S3Object(prefix.child(file.path), file.path, file.size, etag="") for file in records]
    downloaded = download_objects(s3, objects, target, MODEL_ERRORS, lambda _: None)
    for file, received in zip(records, downloaded, strict=True):
        if received.sha256 != file.sha256:
            message = f"{received.uri} does not match {MANIFEST_NAME}: it was changed after it was published"
            raise TrainerError(Reason.STORAGE_CORRUPT, message)
