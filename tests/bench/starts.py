"""From process start to the first step, and the time of a step: the trainer beside a plain script on the same model."""

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

from tests.trainer.s3_server import KEY_ID, SECRET, S3Server
from tests.trainer.tiny_model import build, chat

ROUNDS = 5
STEPS = 200
EVERY = 25
"""Steps between two checkpoints here; by default two minutes lie between them."""
_DEFAULT_SECONDS = 120
_STEP = re.compile(r"step (\d+)/\d+")
_PLAIN = Path(__file__).with_name("plain_trl.py")
_TICKS = os.sysconf("SC_CLK_TCK")
HEAD = "| what | ours | plain TRL | difference | range of the difference |"


@dataclass(frozen=True)
class Times:
    """What a process took until the first step was told, and for a step after it; CPU seconds are of all threads."""

    start: float
    start_cpu: float
    step: float
    step_cpu: float


def rows(server: S3Server, scratch: Path) -> Iterator[str]:
    """Rows of the table; rounds are interleaved."""
    _upload(server, scratch / "model")
    rounds = [(_ours(server, scratch), _plain(server, scratch), _ours(server, scratch, EVERY)) for _ in range(ROUNDS)]
    ours, plain, saving = ([each[place] for each in rounds] for place in range(3))
    yield _row("process start to first step, s", [each.start for each in ours], [each.start for each in plain])
    yield _row("the same, CPU s", [each.start_cpu for each in ours], [each.start_cpu for each in plain])
    yield _row("a step, ms", [each.step * 1e3 for each in ours], [each.step * 1e3 for each in plain])
    yield _row("a step, CPU ms", [each.step_cpu * 1e3 for each in ours], [each.step_cpu * 1e3 for each in plain])
    costs = [(with_.step - without.step) * EVERY for with_, without in zip(saving, ours, strict=True)]
    cost = statistics.median(costs)
    yield (
        f"| a checkpoint, s of training time | {cost:.2f} | none | {100 * cost / _DEFAULT_SECONDS:+.2f} % of the "
        f"{_DEFAULT_SECONDS} s between two | {min(costs):.2f} to {max(costs):.2f} s |"
    )


def _row(what: str, ours: list[float], plain: list[float]) -> str:
    differences = [100 * (mine / theirs - 1) for mine, theirs in zip(ours, plain, strict=True)]
    spread = f"{min(differences):+.0f} to {max(differences):+.0f} %"
    first, second = statistics.median(ours), statistics.median(plain)
    return f"| {what} | {first:.1f} | {second:.1f} | {statistics.median(differences):+.1f} % | {spread} |"


def _upload(server: S3Server, folder: Path) -> None:
    for path in build(folder).iterdir():
        server.put(f"s3://models/tiny/{path.name}", path.read_bytes())
    data = [chat(f"What is lamp {number}?", "A lamp with a red shade. " * 4) for number in range(200)]
    server.put("s3://data/train.jsonl", "\n".join(json.dumps(row) for row in data).encode())


def _ours(server: S3Server, scratch: Path, every: int = 10_000_000) -> Times:
    spec: dict[str, Any] = {
        "model": {"uri": "s3://models/tiny", "maxLength": 256},
        "dataset": {"sources": [{"uri": "s3://data/train.jsonl"}], "preparation": {"deduplicate": "none"}},
        "training": {"maxSteps": STEPS, "gradientAccumulation": 1, "backend": "transformers"},
        "output": {"uri": f"s3://results/{time.monotonic_ns()}"},
        "storage": {"endpoint": server.endpoint},
    }
    spec["training"] |= {"gradientCheckpointing": False, "loss": "all", "checkpoints": {"everySteps": every}}
    job = scratch / "job.yaml"
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bench"}}
    job.write_text(json.dumps({**head, "spec": spec}))
    return _watch([sys.executable, "-m", "finetune_trainer", "run", str(job), "--work-dir", str(scratch / "work")])


def _plain(server: S3Server, scratch: Path) -> Times:
    return _watch([sys.executable, str(_PLAIN), server.endpoint, str(scratch / "plain"), str(STEPS)])


def _watch(line: list[str]) -> Times:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    begun, seen = time.monotonic(), list[tuple[int, float, float]]()
    with subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = []
        for text in process.stdout or ():
            output.append(text)
            if found := _STEP.search(text):
                seen.append((int(found.group(1)), time.monotonic(), _cpu(process.pid)))
    if process.returncode or len(seen) < 2:
        raise SystemExit("".join(output))
    (first, at, used), (last, until, used_at_last) = seen[0], seen[-1]
    count = last - first
    return Times(at - begun, used, (until - at) / count, (used_at_last - used) / count)


def _cpu(pid: int) -> float:
    """Seconds of the process and of its children that have ended: fields 14 to 17 of its stat, see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS
