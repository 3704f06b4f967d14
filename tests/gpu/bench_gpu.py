"""Measure the training paths on one GPU, each in a separate process: `make bench-gpu`.

    PYTHONPATH=trainer:. python tests/gpu/bench_gpu.py [--json OUT] [--seconds 480] [--tiny]

It prints a table and writes JSON. Lines that fail, or that do not start within the time limit, are listed with the
reason. Models have random weights, so no network is needed. `--tiny` tests the script itself, on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.gpu import random_model

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("bench_backends.py")
LARGE = ("--batch", "8", "--accumulation", "1", "--no-recompute")
MIXED = ("--rows", "mixed", "--batch", "8", "--accumulation", "1")
SHARDED = {"FINETUNE_SHARDING": "full"}


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    shape: str
    backend: str
    options: Sequence[str] = ()
    """Arguments of `bench_backends.py`."""
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The line in words."""
        sharding = ["sharded"] if self.environment else []
        return " ".join([self.shape, self.backend, *(option.removeprefix("--") for option in self.options), *sharding])


LINES = (
    Line("1b", "transformers", LARGE),
    Line("1b", "transformers", (*LARGE, "--kernels", "liger")),
    Line("1b", "unsloth", LARGE),
    Line("1b", "trl", LARGE),
    Line("1b", "unsloth-script", LARGE),
    Line("1b", "transformers", MIXED),
    Line("1b", "transformers", (*MIXED, "--batching", "byLength")),
    Line("1b", "transformers", (*MIXED, "--batching", "paddingFree")),
    Line("1b", "transformers", (*MIXED, "--batching", "packed")),
    Line("1b", "transformers", (*MIXED, "--batching", "packed", "--kernels", "liger")),
    Line("1b", "unsloth", MIXED),
    Line("1b", "transformers", (*LARGE, "--kernels", "liger", "--optimizer", "adamw8bit")),
    Line("1b", "transformers", LARGE, SHARDED),
    Line("8b", "transformers", ("--steps", "8")),
    Line("8b", "transformers", ("--steps", "8", "--kernels", "liger")),
    Line("8b", "unsloth", ("--steps", "8")),
    Line("8b", "unsloth-script", ("--steps", "8")),
)
"""The most important lines of each shape come first."""
_TINY = ("--steps", "4", "--batch", "2", "--length", "64")
TINY_LINES = (
    Line("tiny", "transformers", (*_TINY, "--rows", "mixed", "--optimizer", "adamw8bit")),
    Line("tiny", "transformers", (*_TINY, "--kernels", "liger")),
    Line("tiny", "transformers", _TINY, SHARDED),
    Line("tiny", "trl", _TINY),
)
COLUMNS = ("tokens_per_second", "mfu_percent", "peak_gib", "planned_gib", "first_loss", "last_loss", "seconds")


def measure_lines(lines: Sequence[Line], deadline: float, scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield the result or the error of each line."""
    for line in lines:
        folder = scratch / line.shape
        if not folder.is_dir():
            random_model.build(folder, random_model.SHAPES[line.shape])
        yield {"line": line.name, **measure_line(line, deadline, folder)}


def measure_line(line: Line, deadline: float, model_dir: Path) -> dict[str, Any]:
    """Run a line in a process of its own, because importing Unsloth patches other libraries."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        return {"error": "the time limit was reached before"}
    out = model_dir.parent / "out.json"
    command = [sys.executable, str(CHILD), "--shape", line.shape, *line.options]
    command += ["--one", line.backend, "--model", str(model_dir), "--json", str(out)]
    environment = {**os.environ, **line.environment, "FINETUNE_SCRATCH": str(model_dir.parent), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, cwd=ROOT, timeout=remaining, capture_output=True, text=True, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": "the time limit was reached"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]}
    return dict(json.loads(out.read_text()))


def format_row(result: Mapping[str, Any]) -> str:
    """Return a result as a row of a Markdown table."""
    if "error" in result:
        return f"| {result['line']} | {result['error']} |"
    return f"| {result['line']} | {' | '.join(str(result[column]) for column in COLUMNS)} |"


def main() -> None:
    """Print the table while lines finish, and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--seconds", type=float, default=480, help="time limit")
    parser.add_argument("--tiny", action="store_true", help="test the script with a tiny model, also on a CPU")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    results = []
    print(f"| line | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}", flush=True)
    with TemporaryDirectory() as scratch:
        for result in measure_lines(TINY_LINES if arguments.tiny else LINES, deadline, Path(scratch)):
            results.append(result)
            print(format_row(result), flush=True)
            arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
