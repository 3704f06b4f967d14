"""Records of the model cache: `cache.json` of an entry, and the report of the pod's init container."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, ValidationError

from finetune_trainer.contract import SCRATCH_ENV, CacheResult, Model

REPORT_NAME = "model-cache.json"
"""Name of the report in the scratch folder."""


class CachedFile(Model):
    """A file of a cached model."""

    model_config = ConfigDict(extra="ignore")

    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 digest in hexadecimal."""


class CacheRecord(Model):
    """Content of `cache.json`. It is written when all files are complete."""

    model_config = ConfigDict(extra="ignore")

    uri: str
    """`model.uri` of the run that has filled the entry."""
    revision: str
    """Revision of the model."""
    created_at: str
    """RFC 3339."""
    trainer_version: str
    files: dict[str, CachedFile]
    """The files, by name."""


class VerifiedFile(CachedFile):
    """A cached file whose digest was verified, and its times of that moment."""

    modified_ns: int
    changed_ns: int
    """Time of the last change of content or metadata, in nanoseconds. Programs cannot set it."""

    @classmethod
    def from_stat(cls, sha256: str, stat: os.stat_result) -> Self:
        """Return the record of a file with this digest."""
        return cls(sha256=sha256, size=stat.st_size, modified_ns=stat.st_mtime_ns, changed_ns=stat.st_ctime_ns)


class FillReport(Model):
    """What the init container reports to the trainer of its pod, in the scratch folder that both have."""

    model_config = ConfigDict(extra="ignore")

    result: CacheResult
    message: str
    """A sentence for the log."""
    entry: str = ""
    """Digest of the entry."""
    files: dict[str, VerifiedFile] = Field(default={})
    """The verified files of the entry, by name."""

    def write(self) -> None:
        """Write the report to the scratch folder, if the pod has one."""
        if folder := os.environ.get(SCRATCH_ENV):
            (Path(folder) / REPORT_NAME).write_text(self.model_dump_json(by_alias=True))


def read_report() -> FillReport | None:
    """Return the report of the init container, or None if there is none that can be read."""
    folder = os.environ.get(SCRATCH_ENV)
    try:
        return FillReport.model_validate_json((Path(folder) / REPORT_NAME).read_bytes()) if folder else None
    except (OSError, ValidationError):
        return None
