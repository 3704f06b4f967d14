"""Entries of the cache: made once, whole or not at all, by one process at a time."""

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster import paths, shell
from local_cluster.console import echo


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock that ends with the process, so that two runs never make the same thing."""
    folder = paths.get_cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            echo(f"{name}: another run is at it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` only when the block ends well."""
    partial = target.with_name(f".{target.name}.partial")
    remove_folder(partial)
    partial.mkdir(parents=True)
    yield partial
    remove_folder(target)
    partial.rename(target)


def remove_folder(folder: Path) -> None:
    """By rm, which is twice as fast as Python with the many files of an image."""
    shell.capture_output(["rm", "-rf", folder])


def hash_files(files: Iterable[Path], *values: str) -> str:
    """Names and contents of files, and whatever else decides the result, as one short hash."""
    result_hash = hashlib.sha256()
    for file in sorted(files):
        file_hash = hashlib.sha256(file.read_bytes()).hexdigest()
        result_hash.update(f"{file.relative_to(paths.REPOSITORY)} {file_hash}\n".encode())
    result_hash.update("\n".join(values).encode())
    return result_hash.hexdigest()[:16]
