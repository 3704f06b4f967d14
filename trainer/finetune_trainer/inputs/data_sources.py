"""Locations of data: S3, the Hugging Face hub and volumes. Each is listed first and downloaded later."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from finetune_trainer.contract import CLAIMS_DIR_ENV, DataSource, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.data_files import FileSelection, select_data_files
from finetune_trainer.records.manifest import InputRecord
from finetune_trainer.storage import (
    DATA_ERRORS,
    S3,
    InputFile,
    Location,
    S3Object,
    download_objects,
    find_objects,
    suggest_name,
)
from finetune_trainer.storage.listing import list_candidates
from finetune_trainer.storage.local_files import hash_file

log = logging.getLogger(__name__)

_LINKS = "links to folders or to nothing"


class DataListing(Protocol):
    """The data files of one location, which are listed but not downloaded."""

    @property
    def selection(self) -> FileSelection:
        """The files to read, and those that are left out."""

    @property
    def size(self) -> int:
        """Bytes to download."""

    def list_records(self) -> list[InputRecord]:
        """Return the files with what identifies their content."""

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> list[InputFile]:
        """Provide the files on disk. Calls `on_bytes` with the number of bytes of each chunk."""


def list_data(source: DataSource, s3: S3, output_uri: str) -> DataListing:
    """List the files of a source. Files below `output_uri`, where the run publishes its result, are left out.

    Raises for wrong names, credentials and permissions.
    """
    listing = _list_data(source, s3, output_uri.rstrip("/"))
    if listing.selection.left_out:
        log.info("%s: %s", source.uri, listing.selection.describe_left_out())
    return listing


def _list_data(source: DataSource, s3: S3, output_uri: str) -> DataListing:
    if source.uri.startswith("s3://"):
        return list_s3_data(s3, source.uri, output_uri)
    if source.uri.startswith("hf://"):
        from finetune_trainer.inputs import hub_datasets  # its client is imported only if it is used

        return hub_datasets.list_hub_data(source)
    return _list_volume(source.uri)


@dataclass(frozen=True)
class S3DataListing:
    """Data files in S3."""

    s3: S3
    objects: Sequence[S3Object]
    selection: FileSelection

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return sum(s3_object.size for s3_object in self.objects)

    def list_records(self) -> list[InputRecord]:
        """Return the objects with their ETags."""
        return [InputRecord.from_listing(s3_object) for s3_object in self.objects]

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> list[InputFile]:
        """Download all objects."""
        return download_objects(self.s3, self.objects, target, DATA_ERRORS, on_bytes)


def list_s3_data(s3: S3, uri: str, output_uri: str = "") -> S3DataListing:
    """List the data files of an S3 URI."""
    location = Location.parse(uri)
    if location.is_single:
        objects = find_objects(s3, location, DATA_ERRORS)
        return S3DataListing(s3, objects, FileSelection([uri]))
    candidates = list_candidates(s3, location, DATA_ERRORS)
    by_key = {candidate.location.key: candidate for candidate in candidates}
    output = Location.parse(output_uri)
    output_folder = output.key if output.bucket == location.bucket else None
    where = f"{location} at {s3.bucket(location.bucket).endpoint}"
    selection = select_data_files(where, location.key, list(by_key), output_folder)
    objects = [by_key[key] for key in selection.names]
    return S3DataListing(s3, objects, selection)


@dataclass(frozen=True)
class VolumeDataListing:
    """Data files on a mounted volume or a local disk, which are read in place."""

    base_uri: str
    """URI of the folder that the names are relative to, with a `/` at its end."""
    folder: Path
    selection: FileSelection
    size: int = 0
    """Nothing is copied."""

    def list_records(self) -> list[InputRecord]:
        """Return the files with their digests, for which they are read completely: a volume has no ETags."""
        return [InputRecord.from_file(file).without_sha256() for file in self._iterate_files()]

    def fetch(self, target: Path, on_bytes: Callable[[int], None]) -> list[InputFile]:
        """Hash the files in place."""
        return list(self._iterate_files())

    def _iterate_files(self) -> Iterator[InputFile]:
        for name in self.selection.names:
            path, uri = self.folder / name, self.base_uri + name
            try:
                status, digest = path.stat(), hash_file(path)
            except OSError as error:
                raise TrainerError(Reason.DATA_INVALID, f"{uri}: cannot be read: {error.strerror}") from error
            yield InputFile(uri, path, status.st_size, digest, digest, status.st_mtime_ns)


def check_files_unchanged(files: Sequence[InputFile]) -> None:
    """Raise `STORAGE_CORRUPT` if a file that is read in place has changed since it was hashed."""
    for file in files:
        if file.modified_ns is None:
            continue
        status = file.path.stat() if file.path.exists() else None
        if status is None or (status.st_mtime_ns, status.st_size) != (file.modified_ns, file.size):
            message = f"{file.uri}: the file changed while the run read it; run again when nothing writes to it"
            raise TrainerError(Reason.STORAGE_CORRUPT, message)


def _list_volume(uri: str) -> VolumeDataListing:
    scheme, _, full_path = uri.partition("://")
    if scheme == "file":
        base_uri, volume, path = "file:///", Path("/"), full_path.lstrip("/")
    else:
        claim, _, path = full_path.partition("/")
        base_uri, volume = f"pvc://{claim}/", _find_claim(uri, claim)
    try:
        selection = _select_files(uri, volume, path)
        _check_links(uri, volume, selection.names)
    except OSError as error:
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri}: {error.strerror}: {error.filename}") from error
    return VolumeDataListing(base_uri, volume, selection)


def _find_claim(uri: str, claim: str) -> Path:
    root = os.environ.get(CLAIMS_DIR_ENV)
    if not root:
        message = f"{uri}: {CLAIMS_DIR_ENV} is not set; outside of a cluster, set it to a folder that contains {claim}/"
        raise TrainerError(Reason.DATA_NOT_FOUND, message)
    volume = (Path(root) / claim).resolve()
    if not volume.is_dir():
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri}: there is no folder {volume}; check the name of the claim")
    return volume


def _select_files(uri: str, volume: Path, path: str) -> FileSelection:
    location = Location("", path)
    if not location.is_pattern and (volume / path).is_file():
        return FileSelection([path.rstrip("/")])
    folder = volume / (location.base_prefix if location.is_pattern else path)
    if not folder.is_dir():
        raise TrainerError(Reason.DATA_NOT_FOUND, f"{uri}: there is no file or folder {folder}; {_advise(uri, folder)}")
    _check_links(uri, volume, [folder.relative_to(volume).as_posix()])
    names, links = _list_files(folder, volume)
    pattern = path if location.is_pattern or not path or path.endswith("/") else path + "/"
    selection = select_data_files(uri, pattern, names)
    return FileSelection(selection.names, {**selection.left_out, **({_LINKS: links} if links else {})})


def _advise(uri: str, missing: Path) -> str:
    """Return the remedy for a file or folder that does not exist."""
    neighbors = [path.name for path in missing.parent.iterdir()] if missing.parent.is_dir() else []
    advice = suggest_name(missing.name, neighbors)
    if advice or not uri.startswith("file://"):
        return advice or "check the URI"
    return "an object in S3 is s3://bucket/key, and a dataset of the hub is hf://datasets/OWNER/NAME"


def _list_files(folder: Path, volume: Path) -> tuple[list[str], list[str]]:
    """Return the files below a folder relative to the volume, and the links to folders or to nothing, which are not
    followed, relative to the folder."""
    files, links = [], []
    for path in folder.rglob("*"):
        if path.is_file():
            files.append(path.relative_to(volume).as_posix())
        elif path.is_symlink() and not path.name.startswith("."):
            links.append(path.relative_to(folder).as_posix())
    return files, sorted(links)


def _check_links(uri: str, volume: Path, names: Sequence[str]) -> None:
    """Raise `DATA_INVALID` for a link to a target outside of the volume."""
    escaping = next((name for name in names if not (volume / name).resolve().is_relative_to(volume)), None)
    if escaping is not None:
        raise TrainerError(Reason.DATA_INVALID, f"{uri}: {escaping!r} is a link to a target outside of the volume")
