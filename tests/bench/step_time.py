"""CPU time per training step, compared with plain scripts that use TRL and Unsloth directly:

    PYTHONPATH=trainer:. python -m tests.bench.step_time

Both train the same tokens on the same model in alternating rounds, in one process per backend. CPU seconds are
compared, because they depend little on other work of the machine. The first steps of each round, which allocate memory,
are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.support.trainer import plain_trl_training
from tests.support.trainer.tiny_model import QUIET_ENV, build, chat
from tests.support.trainer.tiny_training import RecordingReporter

ROUNDS, STEPS, SKIPPED_STEPS = 5, 24, 4
BATCH = 4
ROWS = [chat(f"What is lamp {number}?", "A lamp with a red shade. " * (2 + number % 5)) for number in range(200)]


class CpuClock(RecordingReporter):
    """Records the CPU seconds of the process at each reported step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("step"):
            self.times.append(time.process_time())


def time_trainer(backend: str, model_dir: Path, folder: Path) -> list[float]:
    """Train as a run does. Return the CPU seconds of the process at each step."""
    from tests.support.trainer.tiny_training import TrainingRequest, train

    clock = CpuClock()
    shape = {"batchSize": BATCH, "gradientAccumulation": 1, "gradientCheckpointing": False, "maxSteps": STEPS}
    request = TrainingRequest({"backend": backend, "loss": "all", "warmupRatio": 0, **shape}, {"max_length": 256}, ROWS)
    train(request, model_dir, folder, clock)
    return clock.times


def time_plain_script(backend: str, model_dir: Path, folder: Path) -> list[float]:
    """Train with a plain script. Return the CPU seconds of the process at each step."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    options = plain_trl_training.TrainingOptions(steps=STEPS, batch_size=BATCH)
    load = plain_trl_training.load_with_unsloth if backend == "unsloth" else plain_trl_training.load_with_trl
    data = plain_trl_training.read_rows(rows, folder / "cache")
    return plain_trl_training.train(load(model_dir, options), data, folder, options).cpu_times


def cpu_ms_per_step(times: list[float]) -> float:
    """Return the CPU milliseconds per step, without the first steps."""
    return 1e3 * (times[-1] - times[SKIPPED_STEPS]) / (len(times) - 1 - SKIPPED_STEPS)


def measure(backend: str, model_dir: Path, folder: Path) -> dict[str, list[float]]:
    """Return the CPU milliseconds per step of both in alternating rounds, without the first round."""
    from finetune_trainer.modeling import backends

    backends.import_backend(backend)
    results: dict[str, list[float]] = {"ours": [], "direct": []}
    for number in range(ROUNDS + 1):
        for name, time_training in (("ours", time_trainer), ("direct", time_plain_script)):
            round_dir = folder / f"{backend}-{number}-{name}"
            round_dir.mkdir()
            results[name].append(cpu_ms_per_step(time_training(backend, model_dir, round_dir)))
    return {name: values[1:] for name, values in results.items()}


def format_row(backend: str, results: dict[str, list[float]]) -> str:
    """Return a row with the medians, and the median and range of the differences of the rounds."""
    pairs = [100 * (first / second - 1) for first, second in zip(results["ours"], results["direct"], strict=True)]
    middle = [f"{statistics.median(results[name]):.1f}" for name in ("ours", "direct")]
    library = "Unsloth" if backend == "unsloth" else "TRL"
    spread = f"{min(pairs):+.1f} to {max(pairs):+.1f} %"
    return f"| {library} | {middle[0]} | {middle[1]} | {statistics.median(pairs):+.1f} % | {spread} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        if options.one:
            backend, out = options.one
            Path(out).write_text(json.dumps(measure(backend, build(folder / "model", hidden=128, layers=4), folder)))
            return
        print("| Library | Ours, CPU ms | Direct, CPU ms | Difference | Range |\n| --- | --- | --- | --- | --- |")
        for backend in ("transformers", "unsloth"):
            # With one thread, CPU seconds do not include threads that wait for each other.
            environment = {**os.environ, **QUIET_ENV, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            line = [sys.executable, "-W", "ignore", "-m", "tests.bench.step_time", "--one", backend, f"{name}/out"]
            process = subprocess.run(line, env=environment, check=False, capture_output=True, text=True)
            if process.returncode:
                raise SystemExit(process.stderr)
            print(format_row(backend, json.loads((folder / "out").read_text())), flush=True)


if __name__ == "__main__":
    main()
