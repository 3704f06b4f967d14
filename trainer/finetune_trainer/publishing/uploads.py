"""Uploads to an output, with a record that tells files of this config from those of others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from finetune_trainer.contract import Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import UPLOAD_RECORD_NAME, FileRecord
from finetune_trainer.storage import (
    S3,
    Location,
    delete_objects,
    get_object_size,
    list_direct_objects,
    put_bytes,
    put_file,
    read_object,
)

log = logging.getLogger(__name__)

_CONTROL_PREFIX = "."
"""Prefix of names of the trainer: lock, checkpoints, rejected reports, `.upload.json`."""


class UploadRecord(Model):
    """`.upload.json`: files that attempts of a config have begun to upload. Removed once a manifest lists them."""

    model_config = ConfigDict(extra="ignore")

    config_digest: str
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """Serialize the record as it is stored."""
        return self.model_dump_json(by_alias=True).encode()


class Uploads:
    """The uploads of one config to one output."""

    def __init__(self, s3: S3, prefix: Location, config_digest: str) -> None:
        self._s3 = s3
        self._prefix = prefix
        self._config_digest = config_digest
        self._uploaded_names: set[str] = set()
        self.check_lock: Callable[[], None] = lambda: None
        """Raises `OUTPUT_BUSY` if another run holds the lock on the output."""

    def list_foreign_files(self, folder: str = "") -> list[str]:
        """Return names of objects directly in `folder` that no attempt of this config has begun to upload.

        The folder is listed before the record is read, since files of this config are recorded before their upload.
        """
        objects = list_direct_objects(self._s3, self._prefix.child(folder))
        own_files = {(file.path, file.size) for file in self._read_announced_files()}
        named_sizes = [
            (folder + s3_object.name, s3_object.size)
            for s3_object in objects
            if not s3_object.name.startswith(_CONTROL_PREFIX)
        ]
        return [name for name, size in named_sizes if (name, size) not in own_files]

    def announce(self, files: Sequence[FileRecord]) -> None:
        """Record files before their upload, in addition to those of earlier attempts."""
        self.check_lock()
        previous_files = [file for file in self._read_announced_files() if file not in files]
        record = UploadRecord(config_digest=self._config_digest, files=[*previous_files, *files])
        put_bytes(self._s3, self._record_location, record.to_bytes())

    def upload_file(self, path: Path, name: str) -> FileRecord:
        """Upload one file. Raises `OUTPUT_BUSY` if the lock was lost."""
        self.check_lock()
        self._uploaded_names.add(name)
        digest = put_file(self._s3, self._prefix.child(name), path)
        return FileRecord(path=name, size=path.stat().st_size, sha256=digest)

    def upload_content(self, content: bytes, name: str) -> None:
        """Upload a small file. Raises `OUTPUT_BUSY` if the lock was lost."""
        self.check_lock()
        put_bytes(self._s3, self._prefix.child(name), content)

    def announce_and_upload(self, path: Path, name: str) -> FileRecord:
        """Record and upload one more file."""
        self.announce([FileRecord.from_path(path, name)])
        return self.upload_file(path, name)

    def verify(self, files: Sequence[FileRecord]) -> None:
        """Raise `STORAGE_CORRUPT` unless the store has every file at its size."""
        for file in files:
            location = self._prefix.child(file.path)
            stored_size = get_object_size(self._s3, location)
            if stored_size != file.size:
                message = f"{location}: uploaded {file.size} bytes, but the store has {stored_size}"
                raise TrainerError(Reason.STORAGE_CORRUPT, message)

    def withdraw(self, folder: str) -> None:
        """Remove the files in `folder` that attempts of this config have uploaded, and their record."""
        self.check_lock()
        stored_names = {
            folder + s3_object.name for s3_object in list_direct_objects(self._s3, self._prefix.child(folder))
        }
        own_names = stored_names - set(self.list_foreign_files(folder)) | stored_names & self._uploaded_names
        names = sorted(name for name in own_names if not name.startswith(folder + _CONTROL_PREFIX))
        delete_objects(self._s3, [self._prefix.child(name) for name in names])
        self.remove_record()

    def remove_record(self) -> None:
        """Remove the record of this config, since a manifest lists its files or they are removed."""
        record = self._read_record()
        if record is not None and record.config_digest == self._config_digest:
            delete_objects(self._s3, [self._record_location])

    def try_remove_record(self) -> None:
        """Remove the record of this config. A failure is only logged: the next attempt removes it."""
        try:
            self.remove_record()
        except TrainerError as error:
            log.warning("publish: could not remove %s: %s", self._record_location, error.message)

    @property
    def _record_location(self) -> Location:
        return self._prefix.child(UPLOAD_RECORD_NAME)

    def _read_announced_files(self) -> list[FileRecord]:
        record = self._read_record()
        return record.files if record and record.config_digest == self._config_digest else []

    def _read_record(self) -> UploadRecord | None:
        try:
            return UploadRecord.model_validate_json(read_object(self._s3, self._record_location) or b"")
        except ValidationError:
            return None
