"""`make bench-trainer`: compare the trainer with boto3, s5cmd and plain TRL, and print markdown tables.

Rounds alternate between the clients, and the tables show medians of five. Every client also computes the SHA-256 of
each file, and all transferred bytes are compared. CPU seconds are user and system time of the client only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve

ROUNDS = 5
DIGEST_ONLY = "sha256 alone"
CLIENTS = ("ours", "boto3", "s5cmd", DIGEST_ONLY)
BENCH_DIR = Path(__file__).parent


@dataclass(frozen=True)
class Load:
    """A number of objects of one size in bytes."""

    name: str
    count: int
    size: int

    @property
    def mib(self) -> float:
        return self.count * self.size / 2**20

    def write(self, folder: Path) -> dict[str, str]:
        """Write files with random bytes. Return their SHA-256 by name."""
        folder.mkdir(parents=True)
        for number in range(self.count):
            (folder / f"{number:05}.bin").write_bytes(os.urandom(self.size))
        return hash_files(folder)


LOADS = (Load("1 x 512 MiB", 1, 512 * 2**20), Load("1,000 x 64 KiB", 1000, 64 * 2**10))


@dataclass
class Timings:
    """Wall-clock and CPU seconds of each round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, wall: float, cpu: float) -> None:
        self.wall.append(wall)
        self.cpu.append(cpu)

    def format_cells(self, load: Load) -> str:
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        spread = f"{load.mib / max(self.wall):.0f}-{load.mib / min(self.wall):.0f}"
        return f"{load.mib / wall:.0f} | {spread} | {cpu / load.mib * 1024:.2f}"


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of all files below `folder`, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_client(name: str, direction: str, endpoint: str, uri: str, folder: Path) -> tuple[float, float, dict[str, str]]:
    """Run one transfer in a separate process. Return its wall-clock seconds, CPU seconds, and SHA-256 by file."""
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    line: list[str | Path] = [sys.executable, BENCH_DIR / "transfer.py", name, direction, endpoint, uri, folder]
    output = json.loads(subprocess.run(line, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    return output["wall"], output["cpu"], output["digests"]


def measure_transfers(server: S3Server, scratch: Path, loads: Sequence[Load]) -> Iterator[str]:
    """Yield the rows of the table of transfers, by load, direction and client."""
    for load in loads:
        source = scratch / "source"
        expected = load.write(source)
        server.client.create_bucket(Bucket="bench")
        run_client("s5cmd", "push", server.endpoint, "s3://bench/source", source)
        for direction, transfer in (("pull", _pull), ("push", _push)):
            results = {name: Timings() for name in CLIENTS}
            for _ in range(ROUNDS):
                for name in CLIENTS:
                    results[name].add(*transfer(name, server, scratch, expected))
            for name, timings in results.items():
                yield f"| {load.name} | {direction} | {name} | {timings.format_cells(load)} |"
        shutil.rmtree(source)
        shutil.rmtree(server.root / "bench")


def _pull(name: str, server: S3Server, scratch: Path, expected: dict[str, str]) -> tuple[float, float]:
    target = scratch / "target"
    target.mkdir()
    if name == DIGEST_ONLY:  # it transfers nothing, so copy the files that it hashes
        shutil.copytree(scratch / "source", target, dirs_exist_ok=True)
    wall, cpu, reported = run_client(name, "pull", server.endpoint, "s3://bench/source", target)
    _check_digests(f"{name} pull, files", expected, hash_files(target))
    _check_digests(f"{name} pull, reported digests", expected, reported)
    shutil.rmtree(target)
    return wall, cpu


def _push(name: str, server: S3Server, scratch: Path, expected: dict[str, str]) -> tuple[float, float]:
    wall, cpu, reported = run_client(name, "push", server.endpoint, "s3://bench/copy", scratch / "source")
    _check_digests(f"{name} push, reported digests", expected, reported)
    if name != DIGEST_ONLY:
        copy = server.root / "bench" / "copy"
        _check_digests(f"{name} push, objects", expected, hash_files(copy))
        shutil.rmtree(copy)
    return wall, cpu


def _check_digests(subject: str, expected: dict[str, str], actual: dict[str, str]) -> None:
    if expected != actual:
        raise SystemExit(f"{subject}: SHA-256 differs from that of the source files")


@contextmanager
def start_server(scratch: Path) -> Iterator[S3Server]:
    """Run the S3 server of the tests in a folder below `scratch`."""
    folder = scratch / "server"
    folder.mkdir()
    yield from serve(folder)


def print_table(rows: Callable[[], Iterator[str]], head: str) -> None:
    """Print a table; print each row as soon as it is measured."""
    print(head)
    print("|" + " --- |" * (head.count("|") - 1))
    for row in rows():
        print(row, flush=True)


def main() -> None:
    """Print the tables of transfers and of training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["transfers", "training"], help="print one of the tables only")
    parser.add_argument("--scratch", type=Path, help="folder with 2 GiB of free space (default: the temporary folder)")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="bench-", dir=options.scratch) as name, start_server(Path(name)) as running:
        scratch = Path(name)
        if options.only != "training":
            head = "| Objects | Direction | Client | MiB/s | Range | CPU s/GiB |"
            print_table(lambda: measure_transfers(running, scratch, LOADS), head)
        if options.only != "transfers":
            from tests.bench import startup_time

            print()
            print_table(lambda: startup_time.measure_rows(running, scratch), startup_time.TABLE_HEAD)


if __name__ == "__main__":
    main()
