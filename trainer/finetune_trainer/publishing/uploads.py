"""Files on their way to an output: what is there already, what this config is about to upload, and each upload."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ConfigDict, ValidationError

from finetune_trainer.contract import Model, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.manifest import FileRecord
from finetune_trainer.storage import S3, Location, listed_directly, put_bytes, put_file, read, remove, size_of

log = logging.getLogger(__name__)

UPLOAD_NAME = ".upload.json"
_CONTROL = "."
"""Names that begin with it are the trainer's own: claim, checkpoints, rejected reports, `.upload.json`."""


class UploadRecord(Model):
    """`.upload.json`: files that attempts of a config have begun to upload; removed once a manifest lists them."""

    model_config = ConfigDict(extra="ignore")

    config_digest: str
    files: list[FileRecord]

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(by_alias=True).encode()


class Uploads:
    """Uploads of one config to one output."""

    def __init__(self, s3: S3, prefix: Location, config_digest: str) -> None:
        self._s3 = s3
        self._prefix = prefix
        self._digest = config_digest
        self._sent: set[str] = set()
        self.check: Callable[[], None] = lambda: None
        """Raises `OUTPUT_BUSY` if another run holds the output by now."""

    def foreign(self, folder: str = "") -> list[str]:
        """Names of objects directly in `folder` that no attempt of this config has begun to upload.

        The folder is listed before the record is read: a file of this config is never there before its record.
        """
        found = listed_directly(self._s3, self._prefix.below(folder))
        own = {(file.path, file.size) for file in self._announced()}
        names = [(folder + each.name, each.size) for each in found if not each.name.startswith(_CONTROL)]
        return [name for name, size in names if (name, size) not in own]

    def announce(self, files: Sequence[FileRecord]) -> None:
        """Record what is about to be uploaded, beside what earlier attempts may have left there."""
        self.check()
        earlier = [file for file in self._announced() if file not in files]
        record = UploadRecord(config_digest=self._digest, files=[*earlier, *files])
        put_bytes(self._s3, self._where, record.to_bytes())

    def put(self, path: Path, name: str) -> FileRecord:
        """Upload one file."""
        self.check()
        self._sent.add(name)
        digest = put_file(self._s3, self._prefix.below(name), path)
        return FileRecord(path=name, size=path.stat().st_size, sha256=digest)

    def add(self, path: Path, name: str) -> FileRecord:
        """Announce and upload one more file."""
        self.announce([FileRecord.of(path, name)])
        return self.put(path, name)

    def verify(self, files: Sequence[FileRecord]) -> None:
        """Raise `STORAGE_CORRUPT` unless the store has every file at its size."""
        for file in files:
            location = self._prefix.below(file.path)
            stored = size_of(self._s3, location)
            if stored != file.size:
                message = f"{location}: {file.size} bytes were uploaded, the store has {stored}"
                raise TrainerError(Reason.STORAGE_CORRUPT, message)

    def withdraw(self, folder: str) -> None:
        """Remove the files in `folder` that attempts of this config have uploaded, and the record of them."""
        self.check()
        there = {folder + each.name for each in listed_directly(self._s3, self._prefix.below(folder))}
        own = there - set(self.foreign(folder)) | there & self._sent
        names = sorted(name for name in own if not name.startswith(folder + _CONTROL))
        remove(self._s3, [self._prefix.below(name) for name in names])
        self.close()

    def close(self) -> None:
        """Remove the record of this config: a manifest lists the files, or they are gone."""
        record = self._record()
        if record is not None and record.config_digest == self._digest:
            remove(self._s3, [self._where])

    def close_quietly(self) -> None:
        """The same; a record that stays is removed by the next attempt."""
        try:
            self.close()
        except TrainerError as error:
            log.warning("publish: %s is left behind: %s", self._where, error.message)

    @property
    def _where(self) -> Location:
        return self._prefix.below(UPLOAD_NAME)

    def _announced(self) -> list[FileRecord]:
        record = self._record()
        return record.files if record and record.config_digest == self._digest else []

    def _record(self) -> UploadRecord | None:
        try:
            return UploadRecord.model_validate_json(read(self._s3, self._where) or b"")
        except ValidationError:
            return None
