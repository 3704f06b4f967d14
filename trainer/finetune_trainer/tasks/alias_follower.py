"""Keeps a folder up to date with the adapter that an alias names, for servers that read it.

The adapter is in a folder that is named after its digest, and the link `current` points to it. The link is replaced
only when the adapter is complete and verified, so that a reader sees one adapter or the other and never a mixture.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_reader import read_alias
from finetune_trainer.publishing.published_result import read_manifest
from finetune_trainer.publishing.result_download import download_files, list_adapter_files
from finetune_trainer.records.manifest import MANIFEST_NAME, compute_digest
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.telemetry.failures import is_disk_full

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

log = logging.getLogger(__name__)

CURRENT_NAME = "current"
_NAME_LENGTH = 16
_FOLDER_NAME = re.compile(rf"[0-9a-f]{{{_NAME_LENGTH}}}")
_PARTIAL_NAME, _NEW_LINK_NAME = ".partial", ".current"


@dataclass(frozen=True)
class _Target:
    """The result that becomes current."""

    adapter_uri: str
    digest: str
    description: str


@dataclass(frozen=True)
class AliasFollower:
    """The folder of one alias, or of one result. Only one process may update it."""

    s3: S3
    alias: Location
    """The alias, or the prefix of a result, which ends with a slash."""
    folder: Path
    key: EllipticCurvePublicKey | None = None
    """Key that the alias must be signed with. If unset, signatures are not verified."""

    def update(self) -> bool:
        """Make `current` point to the adapter that the alias names. Returns whether it has changed.

        Raises `TrainerError` and changes nothing for an alias or an adapter that is missing, invalid or damaged. The
        adapter that was current before stays, and the ones before it are removed.
        """
        target = self._read_target()
        name = target.digest.removeprefix("sha256:")[:_NAME_LENGTH]
        with self._translate_errors():
            previous_name = self._read_link()
            if name == previous_name and (self.folder / name).is_dir():
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / name).is_dir():
                self._download(target, name)
            self._replace_link(name)
            self._remove_folders_except(name, previous_name)
        log.info("alias: %s is %s of %s", CURRENT_NAME, name, target.description)
        return True

    def _read_target(self) -> _Target:
        if not self.alias.key.endswith("/"):
            alias = read_alias(self.s3, self.alias, self.key)
            if alias is None:
                raise TrainerError(Reason.MODEL_NOT_FOUND, f"{self.alias} does not exist; check the URI")
            return _Target(alias.adapter_uri, alias.digest, f"the run {alias.run}, promoted {alias.promoted_time}")
        content = read_object(self.s3, self.alias.child(MANIFEST_NAME))
        if content is None:
            message = f"{self.alias.child(MANIFEST_NAME)} does not exist: the result is not complete; check the URI"
            raise TrainerError(Reason.MODEL_NOT_FOUND, message)
        return _Target(str(self.alias), compute_digest(content), f"the result {self.alias}")

    def _download(self, result: _Target, name: str) -> None:
        """Download the adapter to a temporary folder, which is renamed when all files are verified."""
        prefix, partial = Location.parse_folder(result.adapter_uri), self.folder / _PARTIAL_NAME
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        content = read_manifest(self.s3, result.adapter_uri, result.digest)
        download_files(self.s3, prefix, list_adapter_files(prefix, content), partial)
        (partial / MANIFEST_NAME).write_bytes(content)
        partial.rename(self.folder / name)

    def find_current(self) -> Path | None:
        """Return the folder that `current` points to, if there is one."""
        name = self._read_link()
        return self.folder / name if name else None

    def _read_link(self) -> str | None:
        link = self.folder / CURRENT_NAME
        return os.readlink(link) if link.is_symlink() else None

    def _replace_link(self, name: str) -> None:
        new_link = self.folder / _NEW_LINK_NAME
        new_link.unlink(missing_ok=True)
        new_link.symlink_to(name)  # relative, because the reader may have mounted the folder at another path
        new_link.replace(self.folder / CURRENT_NAME)

    def _remove_folders_except(self, *names: str | None) -> None:
        for path in self.folder.iterdir():
            if _FOLDER_NAME.fullmatch(path.name) and path.name not in names:
                shutil.rmtree(path)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = Reason.DISK_FULL if is_disk_full(error) else Reason.ACCESS_DENIED
            message = f"{error.filename or self.folder} cannot be written: {error.strerror}; check its volume"
            raise TrainerError(reason, message) from error
