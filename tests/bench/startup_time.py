"""Time to the first step and time per step: the trainer compared with a plain TRL script on the same model."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.trainer import plain_trl_training
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server
from tests.support.trainer.tiny_model import build, chat

ROUNDS = 5
STEPS = 200
CHECKPOINT_STEPS = 25
"""Steps between two checkpoints in this benchmark. The default interval is two minutes."""
_DEFAULT_SECONDS = 120
_STEP = re.compile(r"step (\d+)/\d+")
_TICKS = os.sysconf("SC_CLK_TCK")
TABLE_HEAD = "| Measurement | Ours | Plain TRL | Difference | Range of the difference |"


@dataclass(frozen=True)
class StepTimes:
    """Seconds until a process printed its first step, and per step after it; CPU seconds of all threads."""

    start: float
    start_cpu: float
    step: float
    step_cpu: float


def measure_rows(server: S3Server, scratch: Path) -> Iterator[str]:
    """Yield the rows of the table. Rounds alternate between the trainer and the script."""
    _upload(server, scratch / "model")
    rounds = [
        (
            _run_trainer(server, scratch),
            _run_plain_script(server, scratch),
            _run_trainer(server, scratch, CHECKPOINT_STEPS),
        )
        for _ in range(ROUNDS)
    ]
    ours, plain, saving = ([round_times[place] for round_times in rounds] for place in range(3))
    yield _format_row("time to first step, s", [times.start for times in ours], [times.start for times in plain])
    yield _format_row(
        "time to first step, CPU s", [times.start_cpu for times in ours], [times.start_cpu for times in plain]
    )
    yield _format_row("step, ms", [times.step * 1e3 for times in ours], [times.step * 1e3 for times in plain])
    yield _format_row(
        "step, CPU ms", [times.step_cpu * 1e3 for times in ours], [times.step_cpu * 1e3 for times in plain]
    )
    costs = [
        (checkpointed.step - plain_run.step) * CHECKPOINT_STEPS
        for checkpointed, plain_run in zip(saving, ours, strict=True)
    ]
    cost = statistics.median(costs)
    yield (
        f"| checkpoint, s of training time | {cost:.2f} | none | {100 * cost / _DEFAULT_SECONDS:+.2f} % of the "
        f"{_DEFAULT_SECONDS} s interval | {min(costs):.2f} to {max(costs):.2f} s |"
    )


def _format_row(label: str, ours: list[float], plain: list[float]) -> str:
    differences = [100 * (our_value / plain_value - 1) for our_value, plain_value in zip(ours, plain, strict=True)]
    spread = f"{min(differences):+.0f} to {max(differences):+.0f} %"
    first, second = statistics.median(ours), statistics.median(plain)
    return f"| {label} | {first:.1f} | {second:.1f} | {statistics.median(differences):+.1f} % | {spread} |"


def _upload(server: S3Server, folder: Path) -> None:
    for path in build(folder).iterdir():
        server.put(f"s3://models/tiny/{path.name}", path.read_bytes())
    data = [chat(f"What is lamp {number}?", "A lamp with a red shade. " * 4) for number in range(200)]
    server.put("s3://data/train.jsonl", "\n".join(json.dumps(row) for row in data).encode())


def _run_trainer(server: S3Server, scratch: Path, checkpoint_steps: int = 10_000_000) -> StepTimes:
    spec: dict[str, Any] = {
        "model": {"uri": "s3://models/tiny", "maxLength": 256},
        "dataset": {"sources": [{"uri": "s3://data/train.jsonl"}], "preparation": {"deduplicate": "none"}},
        "training": {"maxSteps": STEPS, "gradientAccumulation": 1, "backend": "transformers"},
        "output": {"uri": f"s3://results/{time.monotonic_ns()}"},
        "storage": {"endpoint": server.endpoint},
    }
    spec["training"] |= {"gradientCheckpointing": False, "loss": "all", "checkpoints": {"everySteps": checkpoint_steps}}
    job = scratch / "job.yaml"
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bench"}}
    job.write_text(json.dumps({**head, "spec": spec}))
    return _time_process(
        [sys.executable, "-m", "finetune_trainer", "run", str(job), "--work-dir", str(scratch / "work")]
    )


def _run_plain_script(server: S3Server, scratch: Path) -> StepTimes:
    folder, options = scratch / "plain", json.dumps({"steps": STEPS, "batch_size": 2, "learning_rate": 2e-4})
    paths = [str(folder / name) for name in ("models/tiny", "out", "data/train.jsonl")]
    line = [sys.executable, plain_trl_training.__file__, "trl", *paths, "--options", options]
    return _time_process([*line, "--download", server.endpoint, "models", "data"])


def _time_process(line: list[str]) -> StepTimes:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    started, step_times = time.monotonic(), list[tuple[int, float, float]]()
    with subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = []
        for text in process.stdout or ():
            output.append(text)
            if match := _STEP.search(text):
                step_times.append((int(match.group(1)), time.monotonic(), _read_cpu_seconds(process.pid)))
    if process.returncode or len(step_times) < 2:
        raise SystemExit("".join(output))
    (first, first_at, first_cpu), (last, last_at, last_cpu) = step_times[0], step_times[-1]
    count = last - first
    return StepTimes(first_at - started, first_cpu, (last_at - first_at) / count, (last_cpu - first_cpu) / count)


def _read_cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its ended children: fields 14 to 17 of /proc/PID/stat (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
