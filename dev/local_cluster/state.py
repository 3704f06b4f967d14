"""The state that the supervisor of a cluster publishes, and whether it is running."""

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from local_cluster import paths


@dataclass(frozen=True)
class ClusterState:
    """Addresses and credentials of a cluster. The supervisor writes them once, when the cluster is ready."""

    kubeconfig: str
    s3_url: str
    access_key: str
    secret_key: str
    region: str


def _get_state_file(name: str) -> Path:
    return paths.get_cluster_folder(name) / "state.json"


def write(name: str, state: ClusterState) -> None:
    partial = _get_state_file(name).with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(asdict(state)))
    partial.rename(_get_state_file(name))


def read(name: str) -> ClusterState | None:
    """Return the state of a cluster, or None while it is not ready."""
    file = _get_state_file(name)
    return ClusterState(**json.loads(file.read_text())) if file.exists() else None


def _get_lock_file(name: str) -> Path:
    return paths.get_cache_folder() / "clusters" / f"{name}.lock"


def acquire_lock(name: str) -> IO[str]:
    """Acquire the supervisor's lock, which the kernel releases at the end of the process."""
    file = _get_lock_file(name).open("a")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def is_alive(name: str) -> bool:
    """Return whether a supervisor holds the lock of this cluster."""
    lock_file = _get_lock_file(name)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_pid(name: str, pid: int) -> None:
    _get_lock_file(name).with_suffix(".pid").write_text(str(pid))


def read_pid(name: str) -> int | None:
    """Return the supervisor's process id on the host, or None if it is not running."""
    file = _get_lock_file(name).with_suffix(".pid")
    return int(file.read_text()) if is_alive(name) and file.exists() else None


def find_child(parent_pid: int) -> int | None:
    """Return the process id of the first child found of a process, or None if it has no child."""
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat_file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent_pid:
            return int(stat_file.parent.name)
    return None
