"""Fills an entry of the model cache, unless it is filled already. Several pods may do so at a time."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from finetune_trainer.contract import CacheResult, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_bytes
from finetune_trainer.inputs.base_model import CacheableModelSource, fetch_model
from finetune_trainer.inputs.model_cache import locking
from finetune_trainer.inputs.model_cache.entries import (
    RECORD_NAME,
    CacheDamagedError,
    CacheEntry,
)
from finetune_trainer.inputs.model_cache.records import CachedFile, CacheRecord, FillReport, VerifiedFile
from finetune_trainer.telemetry.progress import current_timestamp

log = logging.getLogger(__name__)

MAX_WAIT_SECONDS = 3600.0
"""Maximum time in seconds that a pod waits for others that fill the entry."""
_MAX_RESERVED_BYTES = 2**30
_RESERVED_SHARE = 0.02
"""Space that stays free on the volume: this share of it, but not more than `_MAX_RESERVED_BYTES`."""

_T = TypeVar("_T")


def fill_cache(cache_dir: Path, source: CacheableModelSource, uri: str) -> FillReport:
    """Fill the entry of a model, or verify the one that exists; a damaged one is replaced.

    Raises `TrainerError` and `OSError` if the cache cannot be used. No incomplete entry remains then.
    """
    entry, deadline = CacheEntry.locate(cache_dir, source), time.monotonic() + MAX_WAIT_SECONDS
    entry.folder.parent.mkdir(parents=True, exist_ok=True)
    locking.remove_leftovers(entry.folder.parent)
    while True:
        if files := _verify_or_discard(entry):
            _touch_record(entry)
            return _build_report(entry, CacheResult.HIT, files)
        with locking.lock_entry(entry) as folder:
            if folder and not entry.exists():
                files = _fill_entry(entry, source, folder, uri)
                return _build_report(entry, CacheResult.FILLED, files)
        if not folder and not locking.wait_for_holder(entry, deadline):
            message = f"other pods have been filling {entry.folder} for {MAX_WAIT_SECONDS:.0f} s"
            raise TrainerError(Reason.INTERNAL_ERROR, message)


def _verify_or_discard(entry: CacheEntry) -> dict[str, VerifiedFile]:
    """Return the verified files of an entry. A damaged one is removed, unless it has been replaced meanwhile."""
    if not entry.exists():
        return {}
    inode = entry.folder.stat().st_ino
    try:
        return run_interruptible(entry.verify)
    except CacheDamagedError as error:
        log.warning("model cache: %s is damaged and is replaced: %s", entry.folder, error)
        if entry.folder.stat().st_ino == inode:
            locking.discard(entry.folder)
        return {}


def _fill_entry(entry: CacheEntry, source: CacheableModelSource, folder: Path, uri: str) -> dict[str, VerifiedFile]:
    """Download the model to `folder`, verify it, and rename the folder to the entry."""
    _check_space(folder, source.size)
    started, staged = time.monotonic(), replace(entry, folder=folder)
    staged.model_dir.mkdir()
    fetched = run_interruptible(lambda: fetch_model(source, staged.model_dir, lambda _: None))
    for name in entry.listed_files:
        _flush(staged.model_dir / name)
    try:
        files = run_interruptible(staged.hash_files)
    except CacheDamagedError as error:
        raise TrainerError(Reason.STORAGE_CORRUPT, f"{uri}: {error}") from error
    digests = {name: file.sha256 for name, file in files.items()}
    if source.describe_copy(folder, digests).revision != fetched.revision:
        raise TrainerError(Reason.STORAGE_CORRUPT, f"{folder} has other bytes than were written")
    _write_record(folder, uri, fetched.revision, files)
    folder.rename(entry.folder)
    log.info("model cache: %s in %.1f s", format_bytes(source.size), time.monotonic() - started)
    return files


def _write_record(folder: Path, uri: str, revision: str, files: Mapping[str, VerifiedFile]) -> None:
    record = CacheRecord(
        uri=uri,
        revision=revision,
        created_at=current_timestamp(),
        trainer_version=version("finetune-operator"),
        files={name: CachedFile(size=file.size, sha256=file.sha256) for name, file in files.items()},
    )
    (folder / RECORD_NAME).write_text(record.model_dump_json(by_alias=True, indent=2))
    _flush(folder / RECORD_NAME)


def _check_space(folder: Path, needed_bytes: int) -> None:
    usage = shutil.disk_usage(folder)
    reserved_bytes = min(_MAX_RESERVED_BYTES, int(usage.total * _RESERVED_SHARE))
    if needed_bytes + reserved_bytes > usage.free:
        sizes = f"{format_bytes(needed_bytes)}, and {format_bytes(usage.free)} are free"
        message = f"the model needs {sizes} ({format_bytes(reserved_bytes)} are reserved); delete unused entries"
        raise TrainerError(Reason.DISK_FULL, message)


def _flush(path: Path) -> None:
    """Wait until the volume has a file. File systems of networks report only now that they are full."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _touch_record(entry: CacheEntry) -> None:
    """Record the last use of an entry: the time of its record."""
    try:
        os.utime(entry.folder / RECORD_NAME)
    except OSError as error:
        log.info("model cache: the use of %s is not recorded: %s", entry.folder, error.strerror)


def _build_report(entry: CacheEntry, result: CacheResult, files: dict[str, VerifiedFile]) -> FillReport:
    size = format_bytes(sum(file.size for file in files.values()))
    action = "filled with" if result is CacheResult.FILLED else "has"
    message = f"{entry.folder} {action} {size} in {len(files)} files, all verified"
    return FillReport(result=result, message=message, entry=entry.digest, files=files)


def run_interruptible(call: Callable[[], _T]) -> _T:
    """Call in another thread, so that a stop signal ends the main thread at once."""
    pool = ThreadPoolExecutor(1, "cache")
    try:
        return pool.submit(call).result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
