"""What a training step costs beside the same training written directly against TRL and Unsloth:

    PYTHONPATH=trainer:. python -m tests.bench.step_time

Both train the same tokens on the same model in turns, in one process per backend. CPU seconds are compared, since they
do not depend on what else the machine does; the first steps of each turn, in which memory is allocated, are left out.
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

from tests.trainer.tiny_model import QUIET, build, chat
from tests.trainer.training import direct
from tests.trainer.training.trainings import Recorder

ROUNDS, STEPS, SKIPPED = 5, 24, 4
BATCH = 4
ROWS = [chat(f"What is lamp {number}?", "A lamp with a red shade. " * (2 + number % 5)) for number in range(200)]


class Clock(Recorder):
    """CPU seconds at which each step was reported."""

    def __init__(self) -> None:
        self.times: list[float] = []
        super().__init__()

    def update(self, **fields: Any) -> None:
        super().update(**fields)
        if fields.get("step"):
            self.times.append(time.process_time())


def ours(backend: str, model_dir: Path, folder: Path) -> list[float]:
    """As a run trains."""
    from tests.trainer.training.trainings import Asked, train

    clock = Clock()
    shape = {"batchSize": BATCH, "gradientAccumulation": 1, "gradientCheckpointing": False, "maxSteps": STEPS}
    asked = Asked({"backend": backend, "loss": "all", "warmupRatio": 0, **shape}, {"max_length": 256}, ROWS)
    train(asked, model_dir, folder, clock)
    return clock.times


def directly(backend: str, model_dir: Path, folder: Path) -> list[float]:
    """As a script of a few lines does."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    how = direct.SETTINGS | {"steps": STEPS, "batch": BATCH}
    load = direct.with_unsloth if backend == "unsloth" else direct.with_trl
    return direct.train(load(str(model_dir), how["seed"]), str(rows), folder / "out", how)["cpu"]


def per_step(times: list[float]) -> float:
    """Milliseconds of CPU per step."""
    return 1e3 * (times[-1] - times[SKIPPED]) / (len(times) - 1 - SKIPPED)


def measure(backend: str, model_dir: Path, folder: Path) -> dict[str, list[float]]:
    """Both ways in turns; the first turn warms up."""
    from finetune_trainer.modeling import loading

    loading.import_backend(backend)
    found: dict[str, list[float]] = {"ours": [], "direct": []}
    for number in range(ROUNDS + 1):
        for name, way in (("ours", ours), ("direct", directly)):
            own = folder / f"{backend}-{number}-{name}"
            own.mkdir()
            found[name].append(per_step(way(backend, model_dir, own)))
    return {name: values[1:] for name, values in found.items()}


def row(backend: str, found: dict[str, list[float]]) -> str:
    """Medians, and the median and range of the rounds' differences."""
    pairs = [100 * (first / second - 1) for first, second in zip(found["ours"], found["direct"], strict=True)]
    middle = [f"{statistics.median(found[name]):.1f}" for name in ("ours", "direct")]
    library = "Unsloth" if backend == "unsloth" else "TRL"
    spread = f"{min(pairs):+.1f} to {max(pairs):+.1f} %"
    return f"| {library} | {middle[0]} | {middle[1]} | {statistics.median(pairs):+.1f} % | {spread} |"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        if asked.one:
            backend, out = asked.one
            Path(out).write_text(json.dumps(measure(backend, build(folder / "model", hidden=128, layers=4), folder)))
            return
        print("| | ours, ms | direct, ms | difference | of the rounds |\n| --- | --- | --- | --- | --- |")
        for backend in ("transformers", "unsloth"):
            # One thread, so that CPU seconds are what a step costs and not what threads wait for each other.
            environment = {**os.environ, **QUIET, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            line = [sys.executable, "-W", "ignore", "-m", "tests.bench.step_time", "--one", backend, f"{name}/out"]
            done = subprocess.run(line, env=environment, check=False, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            print(row(backend, json.loads((folder / "out").read_text())), flush=True)


if __name__ == "__main__":
    main()
