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

from pydantic import ValidationError

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.alias_signature import SignatureInvalidError, verify_alias
from finetune_trainer.publishing.published_result import read_manifest
from finetune_trainer.records.champion_alias import ChampionAlias, describe_content
from finetune_trainer.records.manifest import (
    MANIFEST_NAME,
    MERGED_PREFIX,
    FileRecord,
    PublishedFiles,
)
from finetune_trainer.storage import MODEL_ERRORS, S3, Location, S3Object, download_objects, read_object
from finetune_trainer.telemetry.failures import is_disk_full

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

log = logging.getLogger(__name__)

CURRENT_NAME = "current"
_NAME_LENGTH = 16
_FOLDER_NAME = re.compile(rf"[0-9a-f]{{{_NAME_LENGTH}}}")
_PARTIAL_NAME, _NEW_LINK_NAME = ".partial", ".current"


@dataclass(frozen=True)
class AliasFollower:
    """The folder of one alias. Only one process may update it."""

    s3: S3
    alias: Location
    folder: Path
    key: EllipticCurvePublicKey | None = None
    """Key that the alias must be signed with. If unset, signatures are not verified."""

    def update(self) -> bool:
        """Make `current` point to the adapter that the alias names. Returns whether it has changed.

        Raises `TrainerError` and changes nothing for an alias or an adapter that is missing, invalid or damaged. The
        adapter that was current before stays, and the ones before it are removed.
        """
        alias = self._read_alias()
        name = alias.digest.removeprefix("sha256:")[:_NAME_LENGTH]
        with self._translate_errors():
            previous_name = self._read_link()
            if name == previous_name and (self.folder / name).is_dir():
                return False
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / name).is_dir():
                self._download(alias, name)
            self._replace_link(name)
            self._remove_folders_except(name, previous_name)
        log.info("alias: %s is %s of the run %s, promoted %s", CURRENT_NAME, name, alias.run, alias.promoted_time)
        return True

    def _read_alias(self) -> ChampionAlias:
        content = read_object(self.s3, self.alias)
        if content is None:
            raise TrainerError(Reason.MODEL_NOT_FOUND, f"{self.alias} does not exist; check the URI")
        try:
            alias = ChampionAlias.model_validate_json(content)
        except ValidationError as error:
            message = f"{self.alias} contains {describe_content(content)}, not the alias of a FineTuneSchedule"
            raise TrainerError(Reason.ALIAS_CONFLICT, message) from error
        if self.key is None:
            return alias
        try:
            return verify_alias(content, self.key)
        except SignatureInvalidError as error:
            message = f"{self.alias} for the run {alias.run} is not used: {error}"
            raise TrainerError(Reason.ALIAS_CONFLICT, message) from error

    def _download(self, alias: ChampionAlias, name: str) -> None:
        """Download the adapter to a temporary folder, which is renamed when all files are verified."""
        prefix, partial = Location.parse_folder(alias.adapter_uri), self.folder / _PARTIAL_NAME
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        content = read_manifest(self.s3, alias.adapter_uri, alias.digest)
        files = [each for each in _parse_manifest(prefix, content) if not each.path.startswith(MERGED_PREFIX)]
        # Without an ETag, no request is needed to find out the current one: the digest identifies the content.
        objects = [S3Object(prefix.child(file.path), file.path, file.size, etag="") for file in files]
        downloaded = download_objects(self.s3, objects, partial, MODEL_ERRORS, lambda _: None)
        for file, received in zip(files, downloaded, strict=True):
            if received.sha256 != file.sha256:
                message = f"{received.uri} does not match {MANIFEST_NAME}: it was changed after it was published"
                raise TrainerError(Reason.STORAGE_CORRUPT, message)
        (partial / MANIFEST_NAME).write_bytes(content)
        partial.rename(self.folder / name)

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


def _parse_manifest(prefix: Location, content: bytes) -> list[FileRecord]:
    try:
        return PublishedFiles.model_validate_json(content).files
    except ValidationError as error:
        message = f"{prefix.child(MANIFEST_NAME)} is no manifest that this version can read"
        raise TrainerError(Reason.MODEL_INVALID, message) from error
