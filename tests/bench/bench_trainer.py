"""`make bench-trainer`: the trainer beside its peers, on this machine, in one run; prints a markdown table.

Rounds are interleaved, the median of five is shown. Every client also tells the sha256 of each file, and every byte
that arrives is compared. CPU seconds are the client process' own, user and system together, not the server's.
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
    """So many objects of one size."""

    name: str
    count: int
    size: int

    @property
    def mib(self) -> float:
        return self.count * self.size / 2**20

    def write(self, folder: Path) -> dict[str, str]:
        """Random files; their digests by name."""
        folder.mkdir(parents=True)
        for number in range(self.count):
            (folder / f"{number:05}.bin").write_bytes(os.urandom(self.size))
        return hash_files(folder)


LOADS = (Load("1 x 512 MiB", 1, 512 * 2**20), Load("1,000 x 64 KiB", 1000, 64 * 2**10))


@dataclass
class Timings:
    """Wall and CPU seconds of each round."""

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
    """sha256 by name, of all files below."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_client(name: str, direction: str, endpoint: str, uri: str, folder: Path) -> tuple[float, float, dict[str, str]]:
    """Run one transfer in a process of its own, so that its CPU time can be told; wall, CPU, digests."""
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
    """Rows of the table: pull and publish, by load and client."""
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
    if name == DIGEST_ONLY:  # has to have something to read
        shutil.copytree(scratch / "source", target, dirs_exist_ok=True)
    wall, cpu, reported = run_client(name, "pull", server.endpoint, "s3://bench/source", target)
    _check_digests(f"{name} pulled", expected, hash_files(target))
    _check_digests(f"{name} tells", expected, reported)
    shutil.rmtree(target)
    return wall, cpu


def _push(name: str, server: S3Server, scratch: Path, expected: dict[str, str]) -> tuple[float, float]:
    wall, cpu, reported = run_client(name, "push", server.endpoint, "s3://bench/copy", scratch / "source")
    _check_digests(f"{name} tells", expected, reported)
    if name != DIGEST_ONLY:
        copy = server.root / "bench" / "copy"
        _check_digests(f"{name} published", expected, hash_files(copy))
        shutil.rmtree(copy)
    return wall, cpu


def _check_digests(subject: str, expected: dict[str, str], actual: dict[str, str]) -> None:
    if expected != actual:
        raise SystemExit(f"{subject} other bytes than were there")


@contextmanager
def start_server(scratch: Path) -> Iterator[S3Server]:
    """The tests' own S3 server, in a folder of its own."""
    folder = scratch / "server"
    folder.mkdir()
    yield from serve(folder)


def print_table(rows: Callable[[], Iterator[str]], head: str) -> None:
    """One table, each row as soon as it is known."""
    print(head)
    print("|" + " --- |" * (head.count("|") - 1))
    for row in rows():
        print(row, flush=True)


def main() -> None:
    """Transfers, then starts and steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["transfers", "training"], help="one half of it")
    parser.add_argument("--scratch", type=Path, help="where to write about 2 GiB; absent: the temporary folder")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="bench-", dir=options.scratch) as name, start_server(Path(name)) as running:
        scratch = Path(name)
        if options.only != "training":
            head = "| objects | way | client | MiB/s | range | CPU s/GiB |"
            print_table(lambda: measure_transfers(running, scratch, LOADS), head)
        if options.only != "transfers":
            from tests.bench import startup_time

            print()
            print_table(lambda: startup_time.measure_rows(running, scratch), startup_time.TABLE_HEAD)


if __name__ == "__main__":
    main()
