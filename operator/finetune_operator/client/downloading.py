"""Downloads a result into a folder: complete and with the digests of its manifest, or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_operator.client.errors import ResultUnavailable
from finetune_operator.client.storage_access import StoreReader, locate, shown, translate_storage_errors
from finetune_trainer.records.manifest import MANIFEST_NAME, FileRecord, compute_digest
from finetune_trainer.storage import OUTPUT_ERRORS, S3Object, download_objects, find_name_problem

if TYPE_CHECKING:
    from finetune_operator.client.results import StoredResult


def download_result(
    reader: StoreReader, result: StoredResult, manifest: bytes, folder: Path, on_bytes: Callable[[int], None]
) -> list[Path]:
    """Download the files of a result that a folder lacks. Returns the paths of all of its files.

    `manifest` is the result's manifest as stored.
    """
    _check_names(result)
    try:
        _check_target(result, folder)
        missing = [record for record in result.manifest.files if not _is_equal(folder / record.path, record)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _download_files(reader, result, missing, temporary, on_bytes)
            (temporary / MANIFEST_NAME).write_bytes(manifest)
            _move_files(temporary, folder, [*(record.path for record in missing), MANIFEST_NAME])
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        message = f"cannot write to {error.filename or folder}: {error.strerror}; choose another folder or free space"
        raise ResultUnavailable(message) from None
    return [folder / name for name in [*(record.path for record in result.manifest.files), MANIFEST_NAME]]


def _check_names(result: StoredResult) -> None:
    for record in result.manifest.files:
        problem = find_name_problem(record.path) or ("it is the manifest's" if record.path == MANIFEST_NAME else None)
        if problem:
            raise ResultUnavailable(
                f"{shown(result.uri)}: the manifest names a file {shown(record.path)}, which is not stored: {problem}"
            )


def _check_target(result: StoredResult, folder: Path) -> None:
    """Raise for a folder with anything but an earlier download of the same result."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    manifest_path = folder / MANIFEST_NAME
    if not manifest_path.is_file() or compute_digest(manifest_path.read_bytes()) != result.digest:
        raise ResultUnavailable(f"{folder} exists and is not a download of this result; choose an empty folder")


def _is_equal(path: Path, record: FileRecord) -> bool:
    if not path.is_file() or path.stat().st_size != record.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == record.sha256


def _download_files(
    reader: StoreReader,
    result: StoredResult,
    records: Sequence[FileRecord],
    target: Path,
    on_bytes: Callable[[int], None],
) -> None:
    folder = locate(f"{result.uri}/")
    objects = [S3Object(folder.child(record.path), record.path, record.size, "") for record in records]
    with translate_storage_errors():
        files = download_objects(reader.s3, objects, target, OUTPUT_ERRORS, on_bytes)
    for record, file in zip(records, files, strict=True):
        if file.sha256 != record.sha256:
            raise ResultUnavailable(
                f"{shown(file.uri)} is damaged or was replaced: its digest is not that in the {MANIFEST_NAME}"
            )


def _move_files(source: Path, folder: Path, names: Sequence[str]) -> None:
    """Move files to the folder; the last one marks it as complete."""
    if not folder.exists() or not any(folder.iterdir()):
        folder.mkdir(exist_ok=True)
        source.chmod(folder.stat().st_mode)
        folder.rmdir()
        source.rename(folder)
        return
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, path)
