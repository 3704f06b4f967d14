"""The scratch volume: how much of it is used, and whether what a run needs fits.

The kubelet evicts a pod whose volume has more bytes than its size limit, although the file system may have more:
https://kubernetes.io/docs/concepts/storage/volumes/#emptydir
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.contract import SCRATCH_BYTES_ENV, SCRATCH_ENV, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_bytes

USABLE_SHARE = 0.97
"""Share of the volume that a run may use. It ends at this limit, before the kubelet evicts its pod."""
_BLOCK_BYTES = 512
"""Unit of `st_blocks`, whatever the block size of the file system is."""


@dataclass(frozen=True)
class ScratchVolume:
    """A folder whose files may have `size` bytes together."""

    folder: Path
    size: int

    @property
    def limit(self) -> int:
        """Bytes that a run may use."""
        return int(self.size * USABLE_SHARE)

    def measure_used(self) -> int:
        """Return the allocated bytes of all files and folders, which the kubelet counts: sparse files have few, and a
        file with several names counts once."""
        return sum({status.st_ino: status.st_blocks for status in _iterate_statuses(self.folder)}.values()) * (
            _BLOCK_BYTES
        )


def find_scratch_volume(folder: Path) -> ScratchVolume | None:
    """Return the volume of `FINETUNE_SCRATCH`, which is `folder` if unset, or None if its size is not given.

    Raises `CONFIG_INVALID` if `FINETUNE_SCRATCH_BYTES` is not a positive integer.
    """
    text = os.environ.get(SCRATCH_BYTES_ENV)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text)):
        message = f"{SCRATCH_BYTES_ENV} must be a number of bytes, an integer from 1 on, but is {text[:80]!r}"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return ScratchVolume(Path(os.environ.get(SCRATCH_ENV) or folder), int(text))


def check_disk_space(folder: Path, parts: Mapping[str, int]) -> None:
    """Raise `DISK_FULL` unless the folder has room for the parts, which are sizes in bytes by name."""
    volume, free_bytes, needed_bytes = find_scratch_volume(folder), shutil.disk_usage(folder).free, sum(parts.values())
    used_bytes = volume.measure_used() if volume else 0
    unused_bytes = max(volume.limit - used_bytes, 0) if volume else free_bytes
    if needed_bytes <= min(free_bytes, unused_bytes):
        return
    needed = f"the run needs at least {format_bytes(needed_bytes)} ({describe_parts(parts)})"
    if volume and needed_bytes > unused_bytes:
        left = f"{format_bytes(min(free_bytes, unused_bytes))} of {format_bytes(volume.size)} left"
        advice = f"set compute.scratch.size to {suggest_size(used_bytes + needed_bytes)} or more"
    elif volume:
        left = f"{format_bytes(free_bytes)} left, less than the {format_bytes(volume.size)} of compute.scratch.size"
        advice = "use nodes with a larger disk, or a volume of its own (compute.scratch.storageClassName)"
    else:
        left, advice = f"{format_bytes(free_bytes)} left", "free space there, or use a folder on a larger disk"
    raise TrainerError(Reason.DISK_FULL, f"{needed}, but {volume.folder if volume else folder} has {left}; {advice}")


def describe_parts(parts: Mapping[str, int]) -> str:
    """Return the parts that are not empty: `base model 2.0 GiB, data 1.0 MiB`."""
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


def suggest_size(needed_bytes: int) -> str:
    """Return the size of a volume in which so many bytes may be used, as a quantity of Kubernetes."""
    return f"{math.ceil(needed_bytes / USABLE_SHARE / 2**30)}Gi"


def _iterate_statuses(folder: Path) -> Iterator[os.stat_result]:
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            try:
                yield os.lstat(os.path.join(parent, name))
            except OSError:  # removed since it was listed
                continue
