"""The parent cgroup of a cluster's pods, by which all of them can be removed."""

import errno
import os
import time
from pathlib import Path

REMOVE_TIMEOUT_SECONDS = 10
_CGROUP_ROOT = Path("/sys/fs/cgroup")


def _list_hierarchies() -> list[Path]:
    """Return the cgroup hierarchies: one with cgroup v2, one per controller with cgroup v1."""
    if (_CGROUP_ROOT / "cgroup.controllers").exists():
        return [_CGROUP_ROOT]
    return [hierarchy for hierarchy in _CGROUP_ROOT.iterdir() if hierarchy.is_dir() and not hierarchy.is_symlink()]


def create_cgroup(cgroup: str) -> None:
    """Create the cgroup in every hierarchy. The kubelet requires that its cgroupRoot exists."""
    for hierarchy in _list_hierarchies():
        folder = hierarchy / cgroup.lstrip("/")
        folder.mkdir(exist_ok=True)
        if hierarchy == _CGROUP_ROOT:
            _delegate_controllers(hierarchy)
            _delegate_controllers(folder)
        _set_cpu_weight(folder)


def _set_cpu_weight(folder: Path) -> None:
    """Weight all pods together by the number of CPUs, so that they get CPU time on a busy host too."""
    cpus = os.cpu_count() or 1
    for file, value in (("cpu.shares", 1024 * cpus), ("cpu.weight", 100 * cpus)):  # cgroup v1 and v2
        if (folder / file).exists():
            (folder / file).write_text(str(value))


def _delegate_controllers(folder: Path) -> None:
    controllers = (folder / "cgroup.controllers").read_text().split()
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))


def remove_cgroup(cgroup: str) -> None:
    """Remove the cgroup and its children, children first: rmdir is the only way to remove a cgroup (cgroups(7))."""
    for hierarchy in _list_hierarchies():
        root = hierarchy / cgroup.lstrip("/")
        folders = [folder for folder in root.rglob("*") if folder.is_dir()] if root.exists() else []
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            _remove_empty(folder)
        if root.exists():
            _remove_empty(root)


def _remove_empty(folder: Path) -> None:
    """Remove one cgroup; retry while the kernel still removes its last killed processes."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_SECONDS
    while True:
        try:
            return folder.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
