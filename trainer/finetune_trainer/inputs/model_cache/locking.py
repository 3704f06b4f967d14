"""Locks of entries that are being filled, for pods on several nodes.

A lock is a folder, because file systems of networks create and rename folders atomically, too. It contains one folder
with a random name, whose holder touches it. If the touches end, the next pod takes over.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from finetune_trainer.inputs.model_cache.entries import CacheEntry

log = logging.getLogger(__name__)

BEAT_SECONDS = 10.0
STALE_SECONDS = 150.0
"""Seconds without a touch after which a holder counts as dead. Clients of NFS cache times for up to 60 seconds."""
LEFTOVER_SECONDS = 3600.0
"""Age in seconds of a lock that no pod waits for, after which it is removed. Clocks of nodes may differ."""
_POLL_SECONDS = 1.0
_LOCK_SUFFIX = ".filling"
_DISCARDED_SUFFIX = ".discarded"


@contextmanager
def lock_entry(entry: CacheEntry) -> Iterator[Path | None]:
    """Yield an empty folder that only this process writes to, or None if another one fills the entry.

    Files that are still in it at the end are removed.
    """
    lock, folder = get_lock_path(entry), get_lock_path(entry) / uuid4().hex
    try:
        lock.mkdir()
        folder.mkdir()
    except (FileExistsError, FileNotFoundError):  # not found: another process has just removed the lock
        yield None
        return
    released = threading.Event()
    threading.Thread(target=_touch_until, args=(released, folder), name="cache-lock", daemon=True).start()
    try:
        yield folder
    finally:
        released.set()
        discard(folder)
        with suppress(OSError):  # another process has taken over
            lock.rmdir()


def get_lock_path(entry: CacheEntry) -> Path:
    """Return the path of the lock of an entry."""
    return entry.folder.with_name(f".{entry.digest}{_LOCK_SUFFIX}")


def wait_for_holder(entry: CacheEntry, deadline: float) -> bool:
    """Wait until the lock is released, and take it from a holder that is dead. Returns whether that is so before the
    deadline, in seconds of the monotonic clock."""
    lock, last_touch, last_change = get_lock_path(entry), None, time.monotonic()
    log.info("model cache: another pod is filling %s; waiting for it", entry.folder)
    while lock.is_dir():
        touch = _read_touch(lock)
        if touch != last_touch:
            last_touch, last_change = touch, time.monotonic()
        elif time.monotonic() - last_change > STALE_SECONDS:
            log.warning("model cache: the pod that was filling %s has ended; taking over", entry.folder)
            discard(lock)
            continue
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def discard(path: Path) -> None:
    """Remove a folder. It is renamed first, so that it is gone at once for others."""
    discarded = path.with_name(f".{uuid4().hex}{_DISCARDED_SUFFIX}")
    with suppress(FileNotFoundError):
        path.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)  # `remove_leftovers` tries again


def remove_leftovers(folder: Path) -> None:
    """Remove what killed pods have left in the folder of all entries."""
    for path in folder.glob(f".*{_DISCARDED_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
    for lock in folder.glob(f".*{_LOCK_SUFFIX}"):
        touches = [touched for _, touched in _read_touch(lock)]
        if touches and time.time() - max(touches) / 1e9 > LEFTOVER_SECONDS:
            log.info("model cache: removing %s of a pod that was killed", lock)
            discard(lock)


def _touch_until(released: threading.Event, folder: Path) -> None:
    while not released.wait(BEAT_SECONDS):
        try:
            os.utime(folder)
        except OSError:  # another process has taken over
            return


def _read_touch(lock: Path) -> tuple[tuple[str, int], ...]:
    """Return the names and times of the lock and of the folder in it."""
    with suppress(FileNotFoundError):
        return tuple((path.name, path.stat().st_mtime_ns) for path in (lock, *lock.iterdir()))
    return ()
