"""Entries of the cache: made once, whole or not at all, by one process at a time."""

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster import paths, shell
from local_cluster.console import say


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold a lock that ends with the process, so that two runs never make the same thing."""
    folder = paths.cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{name}: another run is at it, waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it becomes `target` only when the block ends well."""
    partial = target.with_name(f".{target.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    yield partial
    remove(target)
    partial.rename(target)


def remove(folder: Path) -> None:
    """By rm, which is twice as fast as Python with the many files of an image."""
    shell.output(["rm", "-rf", folder])


def digest(files: Iterable[Path], *words: str) -> str:
    """Names and contents of files, and whatever else decides the result, as one short hash."""
    total = hashlib.sha256()
    for file in sorted(files):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        total.update(f"{file.relative_to(paths.REPOSITORY)} {content}\n".encode())
    total.update("\n".join(words).encode())
    return total.hexdigest()[:16]
