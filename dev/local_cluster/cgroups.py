"""The cgroups of a cluster's pods: all below one of its own, so that they can be cleared by name."""

import errno
import os
import time
from pathlib import Path

EMPTY_SECONDS = 10
_MOUNT = Path("/sys/fs/cgroup")


def _trees() -> list[Path]:
    """One tree under cgroup v2, one per controller under v1."""
    if (_MOUNT / "cgroup.controllers").exists():
        return [_MOUNT]
    return [tree for tree in _MOUNT.iterdir() if tree.is_dir() and not tree.is_symlink()]


def create(cgroup: str) -> None:
    """The kubelet wants its root to be there."""
    for tree in _trees():
        folder = tree / cgroup.lstrip("/")
        folder.mkdir(exist_ok=True)
        if tree == _MOUNT:
            _delegate(tree)
            _delegate(folder)
        _weigh(folder)


def _weigh(folder: Path) -> None:
    """Beside a busy machine's other processes, each of which counts for one, all pods together count for every CPU."""
    cpus = os.cpu_count() or 1
    for file, value in (("cpu.shares", 1024 * cpus), ("cpu.weight", 100 * cpus)):  # cgroup v1, v2
        if (folder / file).exists():
            (folder / file).write_text(str(value))


def _delegate(folder: Path) -> None:
    controllers = (folder / "cgroup.controllers").read_text().split()
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def remove(cgroup: str) -> None:
    """Children before parents; a cgroup cannot be emptied otherwise, its files are not real."""
    for tree in _trees():
        root = tree / cgroup.lstrip("/")
        folders = [folder for folder in root.rglob("*") if folder.is_dir()] if root.exists() else []
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            _remove_empty(folder)
        if root.exists():
            _remove_empty(root)


def _remove_empty(folder: Path) -> None:
    """The kernel empties it a moment after the last process has been killed."""
    deadline = time.monotonic() + EMPTY_SECONDS
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
