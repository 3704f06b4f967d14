"""Lists the entries of a model cache for people, who delete those that are not needed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from finetune_trainer.formatting import format_bytes, format_duration, pluralize
from finetune_trainer.inputs.model_cache.entries import LAYOUT_VERSION, RECORD_NAME, CacheDamagedError, read_record
from finetune_trainer.text import to_one_line

_HEADER = ("SIZE", "LAST USE", "MODEL", "REVISION", "FOLDER")
_REVISION_LENGTH = 19
_UNKNOWN = "?"


class ListedEntry(NamedTuple):
    """A folder of the cache, as people see it."""

    folder: Path
    size: int
    """Bytes of all files."""
    idle_seconds: float
    """Seconds since the last use."""
    uri: str
    revision: str


def list_entries(cache_dir: Path) -> list[ListedEntry]:
    """Return the entries of a cache, the largest first, also those that are incomplete or cannot be read."""
    root, entries = cache_dir / LAYOUT_VERSION, []
    for folder in [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []:
        with suppress(FileNotFoundError):  # a pod has just filled or removed it
            entries.append(_describe_folder(folder))
    return sorted(entries, key=lambda entry: entry.size, reverse=True)


def format_entries(cache_dir: Path, entries: Sequence[ListedEntry]) -> str:
    """Return a table of the entries, and a line about the space on the volume."""
    rows = [_HEADER, *map(_format_entry, entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    ]
    total, free = sum(entry.size for entry in entries), shutil.disk_usage(cache_dir).free
    summary = f"{pluralize(len(entries), 'entry', 'entries')}, {format_bytes(total)}; {format_bytes(free)} free"
    return "\n".join([*lines, summary])


def _describe_folder(folder: Path) -> ListedEntry:
    size, last_use = sum(_iter_sizes(folder)), folder.stat().st_mtime
    try:
        record = read_record(folder)
        last_use = (folder / RECORD_NAME).stat().st_mtime
    except CacheDamagedError:
        return ListedEntry(folder, size, time.time() - last_use, "(incomplete)", _UNKNOWN)
    except PermissionError:
        return ListedEntry(folder, size, time.time() - last_use, "(not readable)", _UNKNOWN)
    return ListedEntry(folder, size, time.time() - last_use, to_one_line(record.uri), to_one_line(record.revision))


def _iter_sizes(folder: Path) -> Iterator[int]:
    for parent, _, names in os.walk(folder):  # skips folders that are being removed
        for name in names:
            with suppress(FileNotFoundError):
                yield os.lstat(os.path.join(parent, name)).st_size


def _format_entry(entry: ListedEntry) -> tuple[str, ...]:
    idle = f"{format_duration(max(0.0, entry.idle_seconds))} ago"
    return format_bytes(entry.size), idle, entry.uri, entry.revision[:_REVISION_LENGTH], str(entry.folder)
