"""Entries of the model cache: their paths, and the verification of their files.

The volume is not trusted: other pods write to it, and disks fail. Every file is compared with what the source lists now
and with `cache.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from pydantic import ValidationError

from finetune_trainer.inputs.base_model import CacheableModelSource, ListedFile
from finetune_trainer.inputs.model_cache.records import CacheRecord, VerifiedFile
from finetune_trainer.storage.local_files import hash_file

LAYOUT_VERSION = "v1"
RECORD_NAME = "cache.json"
MODEL_FOLDER = "model"
_MAX_HASH_THREADS = 8
_MAX_RECORD_BYTES = 16 * 2**20


class CacheDamagedError(Exception):
    """An entry whose files are not those of the model."""


@dataclass(frozen=True)
class CacheEntry:
    """The place of one version of a model in the cache, whether or not it is filled."""

    folder: Path
    listed_files: Mapping[str, ListedFile]
    """The files that the source of the model lists now, by name."""

    @classmethod
    def locate(cls, cache_dir: Path, source: CacheableModelSource) -> CacheEntry:
        """Return the entry of a model. Its name is a digest of the location and the version of all files."""
        digest = hashlib.sha256(json.dumps(source.identity).encode()).hexdigest()
        return cls(cache_dir / LAYOUT_VERSION / digest, source.listed_files)

    @property
    def digest(self) -> str:
        """Name of the entry."""
        return self.folder.name

    @property
    def model_dir(self) -> Path:
        """Folder with the files of the model."""
        return self.folder / MODEL_FOLDER

    def exists(self) -> bool:
        """Return whether the entry is filled, or was filled and is damaged."""
        return self.folder.is_dir()

    def verify(self, known_files: Mapping[str, VerifiedFile] | None = None) -> dict[str, VerifiedFile]:
        """Return the verified files. A file that has not changed since it became one of `known_files` is not read.

        Raises `CacheDamagedError` for missing, additional and different files, and `OSError` if one cannot be read.
        """
        if known_files and self._read_stats(known_files) == known_files:
            return dict(known_files)
        recorded, files = read_record(self.folder).files, self.hash_files()
        for name, file in files.items():
            if name not in recorded or recorded[name].sha256 != file.sha256:
                raise CacheDamagedError(f"{name} has another SHA-256 digest than in {RECORD_NAME}")
        return files

    def hash_files(self) -> dict[str, VerifiedFile]:
        """Return all files with their digests, several of which are computed at a time: one thread hashes more slowly
        than most volumes are read.

        Raises `CacheDamagedError` for files that are not those that the source lists.
        """
        stats = self._check_names_and_sizes()
        digests = compute_digests(self.model_dir, stats)
        _check_listed_digests(self.model_dir, self.listed_files, digests)
        return {name: VerifiedFile.from_stat(digests[name], stat) for name, stat in stats.items()}

    def _read_stats(self, known_files: Mapping[str, VerifiedFile]) -> dict[str, VerifiedFile]:
        """Return the files as they are now, with the known digests."""
        known = {name: file.sha256 for name, file in known_files.items()}
        stats = self._check_names_and_sizes()
        return {name: VerifiedFile.from_stat(known.get(name, ""), stat) for name, stat in stats.items()}

    def _check_names_and_sizes(self) -> dict[str, os.stat_result]:
        for folder in (self.folder, self.model_dir):
            if not folder.is_dir() or folder.is_symlink():
                raise CacheDamagedError(f"{folder} is not a folder")
        stats = dict(_iter_files(self.model_dir, self.model_dir))
        if different := sorted(stats.keys() ^ self.listed_files.keys()):
            problem = "is missing" if different[0] in self.listed_files else "is not a file of the model"
            raise CacheDamagedError(f"{different[0]} {problem}")
        for name, stat in stats.items():
            if stat.st_size != self.listed_files[name].size:
                raise CacheDamagedError(
                    f"{name} has {stat.st_size} bytes, but the source has {self.listed_files[name].size}"
                )
        return stats


def read_record(folder: Path) -> CacheRecord:
    """Return `cache.json` of an entry. Raises `CacheDamagedError` if it is missing or invalid."""
    path = folder / RECORD_NAME
    try:
        if not S_ISREG(path.lstat().st_mode):  # a read of a pipe would wait
            raise CacheDamagedError(f"{RECORD_NAME} is not a regular file")
        with path.open("rb") as file:
            return CacheRecord.model_validate_json(file.read(_MAX_RECORD_BYTES))
    except (FileNotFoundError, ValidationError) as error:
        raise CacheDamagedError(f"{RECORD_NAME} is missing or invalid") from error


def compute_digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 digests of files, by name."""
    pool = ThreadPoolExecutor(min(_MAX_HASH_THREADS, len(os.sched_getaffinity(0))), "hash")
    try:
        futures = {name: pool.submit(hash_file, folder / name) for name in names}
        return {name: future.result() for name, future in futures.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _check_listed_digests(
    folder: Path, listed_files: Mapping[str, ListedFile], sha256_by_name: Mapping[str, str]
) -> None:
    """Raise `CacheDamagedError` for a file with another digest than its source lists."""
    for name, listed in listed_files.items():
        is_same = listed.sha256 in ("", sha256_by_name[name])
        if not is_same or (listed.blob_id and listed.blob_id != _compute_blob_id(folder / name)):
            raise CacheDamagedError(f"{name} has another digest than its source lists")


def _compute_blob_id(path: Path) -> str:
    """Return the ID of a file in Git: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects"""
    header = b"blob %d\0" % path.stat().st_size
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()


def _iter_files(folder: Path, root: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name and the status of each file. Raises `CacheDamagedError` for links and special files."""
    for path in sorted(folder.iterdir()):
        stat = path.lstat()
        if S_ISDIR(stat.st_mode):
            yield from _iter_files(path, root)
        elif S_ISREG(stat.st_mode):
            yield path.relative_to(root).as_posix(), stat
        else:
            raise CacheDamagedError(f"{path.relative_to(root)} is not a regular file")
