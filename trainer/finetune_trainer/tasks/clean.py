"""Deletes the checkpoints of ended runs at an output: `<output>/.checkpoints/<config digest>/`.

Only old checkpoints are deleted, and only under the output lock, so that no run reads a half-deleted checkpoint. Only
objects with the names of checkpoints are deleted. Results and the evidence of failed runs stay.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune_trainer.checkpoints.layout import ALLOWED_FILES, CHECKPOINT_MANIFEST_NAME, CHECKPOINTS_PREFIX
from finetune_trainer.contract import CleanReport, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_bytes, pluralize
from finetune_trainer.publishing.output_lock import LockTiming, OutputLock
from finetune_trainer.records.gguf import GGUF_PREFIX
from finetune_trainer.records.manifest import MERGED_PREFIX
from finetune_trainer.storage import OUTPUT_ERRORS, S3, Location
from finetune_trainer.storage.aged_objects import AgedObject, iter_aged_objects, iter_aged_uploads
from finetune_trainer.storage.bulk_delete import BulkDeleter
from finetune_trainer.storage.errors import translate_errors
from finetune_trainer.telemetry.progress import ProgressReporter

log = logging.getLogger(__name__)

_DIGEST = r"[0-9a-f]{64}"
_CHECKPOINT_FOLDER = re.compile(rf"({_DIGEST})/(.+)", re.DOTALL)
_STEP_FILE = re.compile(r"step-\d+/(?:.+/)?([^/]+)", re.DOTALL)
_OUTPUT_OF_CHECKPOINT = re.compile(rf"(.*/)?{re.escape(CHECKPOINTS_PREFIX)}{_DIGEST}/step-\d+/.+", re.DOTALL)
_UPLOAD_OF_RUN = re.compile(
    rf"(?:{re.escape(MERGED_PREFIX)}|{re.escape(GGUF_PREFIX)})?[^/]+|{re.escape(CHECKPOINTS_PREFIX)}.+", re.DOTALL
)


@dataclass
class _Checkpoints:
    """The objects below the checkpoints of one configuration."""

    youngest_seconds: float = float("inf")
    objects: int = 0
    bytes: int = 0
    manifest_keys: list[str] = field(default_factory=list)


@dataclass
class _Garbage:
    """What can be deleted at an output."""

    checkpoints: dict[str, _Checkpoints] = field(default_factory=dict)
    """The checkpoints that are old enough, by configuration."""
    uploads: list[AgedObject] = field(default_factory=list)
    kept: int = 0
    """Number of configurations whose checkpoints are not old enough."""

    def to_report(self) -> CleanReport:
        """Return the counts."""
        return CleanReport(
            objects=sum(each.objects for each in self.checkpoints.values()),
            bytes=sum(each.bytes for each in self.checkpoints.values()),
            uploads=len(self.uploads),
            kept=self.kept,
        )


def find_outputs(s3: S3, prefix: Location) -> list[Location]:
    """Return the outputs below a prefix with objects of checkpoints, sorted."""
    matches = (_OUTPUT_OF_CHECKPOINT.fullmatch(each.key) for each in iter_aged_objects(s3, prefix))
    keys = {match[1] or "" for match in matches if match}
    return [Location(prefix.bucket, key) for key in sorted(keys) if key.startswith(prefix.key)]


def find_garbage(s3: S3, output: Location, min_age_seconds: float) -> CleanReport:
    """Return what `clean_output` would delete now."""
    return _find_garbage(s3, output, min_age_seconds).to_report()


def clean_output(s3: S3, output: Location, min_age_seconds: float, timing: LockTiming | None = None) -> CleanReport:
    """Delete the checkpoints whose newest object has at least this age, and abort uploads that are as old.

    Can be repeated after an interruption. Raises `OUTPUT_BUSY` while a run is active at this output.
    """
    garbage = _find_garbage(s3, output, min_age_seconds)
    if not garbage.checkpoints and not garbage.uploads:
        return garbage.to_report()
    lock = OutputLock(s3, output, run_id=f"clean-{uuid.uuid4().hex}", config_digest="", timing=timing)
    try:
        lock.acquire(ProgressReporter())
        garbage = _find_garbage(s3, output, min_age_seconds)  # a run may have been active before
        _delete_checkpoints(s3, output, garbage, lock)
        _abort_uploads(s3, output, garbage.uploads)
    finally:
        lock.release()
    return garbage.to_report()


def format_report(report: CleanReport) -> str:
    """Describe a report in one line."""
    text = f"{pluralize(report.objects, 'object')} of checkpoints ({format_bytes(report.bytes)})"
    text += f" and {pluralize(report.uploads, 'unfinished upload')}"
    return text + (f"; newer checkpoints of {pluralize(report.kept, 'configuration')} are kept" if report.kept else "")


def _find_garbage(s3: S3, output: Location, min_age_seconds: float) -> _Garbage:
    root = output.child(CHECKPOINTS_PREFIX)
    found: dict[str, _Checkpoints] = {}
    for stored in iter_aged_objects(s3, root):
        match = _CHECKPOINT_FOLDER.fullmatch(stored.key.removeprefix(root.key))
        if match is None:
            continue
        checkpoints = found.setdefault(match[1], _Checkpoints())
        checkpoints.youngest_seconds = min(checkpoints.youngest_seconds, stored.age_seconds)
        name = _get_file_name(match[2])
        if name:
            checkpoints.objects += 1
            checkpoints.bytes += stored.size
        if name == CHECKPOINT_MANIFEST_NAME:
            checkpoints.manifest_keys.append(stored.key)
    is_old = {digest: each.youngest_seconds >= min_age_seconds for digest, each in found.items()}
    old = {digest: each for digest, each in found.items() if is_old[digest] and each.objects}
    return _Garbage(old, _find_old_uploads(s3, output, min_age_seconds), len(found) - sum(is_old.values()))


def _get_file_name(path: str) -> str | None:
    """Return the name of a file of a checkpoint, relative to its configuration's folder, or None for other objects."""
    match = _STEP_FILE.fullmatch(path)
    is_ours = match and (match[1] == CHECKPOINT_MANIFEST_NAME or ALLOWED_FILES.fullmatch(match[1]))
    return match[1] if match and is_ours else None


def _find_old_uploads(s3: S3, output: Location, min_age_seconds: float) -> list[AgedObject]:
    """Return old uploads to the keys of runs, none without the permission: checkpoints are deleted in any case."""
    try:
        uploads = list(iter_aged_uploads(s3, output))
    except TrainerError as error:
        if error.reason is not Reason.ACCESS_DENIED:
            raise
        log.info("clean: unfinished uploads are not removed: %s", error.message)
        return []
    return [
        upload
        for upload in uploads
        if upload.age_seconds >= min_age_seconds and _UPLOAD_OF_RUN.fullmatch(upload.key.removeprefix(output.key))
    ]


def _delete_checkpoints(s3: S3, output: Location, garbage: _Garbage, lock: OutputLock) -> None:
    """Delete all manifests first: what an interruption leaves then does not look complete."""
    deleter = BulkDeleter(s3, output.bucket)
    lock.check_held()
    deleter.delete(key for checkpoints in garbage.checkpoints.values() for key in checkpoints.manifest_keys)
    for digest in garbage.checkpoints:
        deleter.delete(_iter_keys(s3, output.child(f"{CHECKPOINTS_PREFIX}{digest}/"), lock))


def _iter_keys(s3: S3, folder: Location, lock: OutputLock) -> Iterator[str]:
    for stored in iter_aged_objects(s3, folder):
        lock.check_not_lost()
        if _get_file_name(stored.key.removeprefix(folder.key)):
            yield stored.key


def _abort_uploads(s3: S3, output: Location, uploads: list[AgedObject]) -> None:
    bucket = s3.bucket(output.bucket)
    for upload in uploads:
        with translate_errors(Location(output.bucket, upload.key), bucket.endpoint, OUTPUT_ERRORS):
            try:
                bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=upload.key, UploadId=upload.upload_id)
            except bucket.client.exceptions.NoSuchUpload:
                continue  # its writer has completed or aborted it
