"""The cgroups of a cluster's pods: all below one of its own, so that they can be cleared by name."""

import errno
import os
import time
from pathlib import Path

REMOVE_TIMEOUT_SECONDS = 10
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def _list_hierarchies() -> list[Path]:
    """One tree under cgroup v2, one per controller under v1."""
    if (_CGROUP_ROOT / "cgroup.controllers").exists():
        return [_CGROUP_ROOT]
    return [hierarchy for hierarchy in _CGROUP_ROOT.iterdir() if hierarchy.is_dir() and not hierarchy.is_symlink()]


def create_cgroup(cgroup: str) -> None:
    """The kubelet wants its root to be there."""
    for hierarchy in _list_hierarchies():
        folder = hierarchy / cgroup.lstrip("/")
        folder.mkdir(exist_ok=True)
        if hierarchy == _CGROUP_ROOT:
            _delegate_controllers(hierarchy)
            _delegate_controllers(folder)
        _set_cpu_weight(folder)


def _set_cpu_weight(folder: Path) -> None:
    """Beside a busy machine's other processes, each of which counts for one, all pods together count for every CPU."""
    cpus = os.cpu_count() or 1
    for file, value in (("cpu.shares", 1024 * cpus), ("cpu.weight", 100 * cpus)):  # cgroup v1, v2
        if (folder / file).exists():
            (folder / file).write_text(str(value))


def _delegate_controllers(folder: Path) -> None:
    controllers = (folder / "cgroup.controllers").read_text().split()
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def remove_cgroup(cgroup: str) -> None:
    """Children before parents; a cgroup cannot be emptied otherwise, its files are not real."""
    for hierarchy in _list_hierarchies():
        root = hierarchy / cgroup.lstrip("/")
        folders = [folder for folder in root.rglob("*") if folder.is_dir()] if root.exists() else []
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            _remove_empty(folder)
        if root.exists():
            _remove_empty(root)


def _remove_empty(folder: Path) -> None:
    """The kernel empties it a moment after the last process has been killed."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_SECONDS
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
