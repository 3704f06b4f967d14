"""What a cluster's supervisor tells the rest, and whether it is alive."""

import fcntl
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from local_cluster import paths


@dataclass(frozen=True)
class State:
    """Written once, when the cluster is ready."""

    kubeconfig: str
    s3_url: str
    access_key: str
    secret_key: str
    region: str


def _file(name: str) -> Path:
    return paths.cluster_folder(name) / "state.json"


def write(name: str, state: State) -> None:
    partial = _file(name).with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(asdict(state)))
    partial.rename(_file(name))


def read(name: str) -> State | None:
    """None while the cluster is not ready."""
    file = _file(name)
    return State(**json.loads(file.read_text())) if file.exists() else None


def _lock_file(name: str) -> Path:
    return paths.cache() / "clusters" / f"{name}.lock"


def hold(name: str) -> IO[str]:
    """Called by the supervisor: the kernel drops the lock when it ends, however it ends."""
    file = _lock_file(name).open("a")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def alive(name: str) -> bool:
    """Whether a supervisor holds the lock."""
    lock = _lock_file(name)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_pid(name: str, pid: int) -> None:
    _lock_file(name).with_suffix(".pid").write_text(str(pid))


def pid(name: str) -> int | None:
    """The supervisor's process id on the host; only meaningful while it is alive."""
    file = _lock_file(name).with_suffix(".pid")
    return int(file.read_text()) if alive(name) and file.exists() else None


def child_of(parent: int) -> int | None:
    """The one child of a process, if it has one yet."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            return int(status.parent.name)
    return None
