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
from pathlib import Path
from typing import Any

from tests.trainer.conftest import KEY_ID, SECRET, S3Server
from tests.trainer.tiny_model import build, chat

ROUNDS = 3
STEPS = 400
_STEP = re.compile(r"step (\d+)/\d+")
_PLAIN = Path(__file__).with_name("plain_trl.py")
Times = tuple[float, float]
"""Seconds to the first step that is told of, and of a step after it."""


def rows(server: S3Server, scratch: Path) -> Iterator[str]:
    """Rows of the table; rounds are interleaved."""
    _upload(server, scratch / "model")
    starts = [(_ours(server, scratch, 20)[0], _plain(server, scratch, 20)[0]) for _ in range(ROUNDS)]
    yield _row("start to first step, s", starts)
    steps = [(_ours(server, scratch, STEPS)[1] * 1e3, _plain(server, scratch, STEPS)[1] * 1e3) for _ in range(ROUNDS)]
    yield _row("a step, ms", steps)
    saving = [
        (_ours(server, scratch, STEPS, every=50)[1] * 1e3, _ours(server, scratch, STEPS)[1] * 1e3)
        for _ in range(ROUNDS)
    ]
    yield _row("a step with a checkpoint each 50, ms (second: without)", saving)


def _row(what: str, pairs: list[Times]) -> str:
    first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
    return f"| {what} | {first:.2f} | {second:.2f} | {100 * (first / second - 1):+.1f} % |"


def _upload(server: S3Server, folder: Path) -> None:
    for path in build(folder).iterdir():
        server.put(f"s3://models/tiny/{path.name}", path.read_bytes())
    data = [chat(f"What is lamp {number}?", "A lamp with a red shade. " * 4) for number in range(200)]
    server.put("s3://data/train.jsonl", "\n".join(json.dumps(row) for row in data).encode())


def _ours(server: S3Server, scratch: Path, steps: int, every: int = 10_000_000) -> Times:
    spec: dict[str, Any] = {
        "model": {"uri": "s3://models/tiny", "maxLength": 256},
        "dataset": {"sources": [{"uri": "s3://data/train.jsonl"}], "preparation": {"deduplicate": "none"}},
        "training": {"maxSteps": steps, "gradientAccumulation": 1, "backend": "transformers"},
        "output": {"uri": f"s3://results/{time.monotonic_ns()}"},
        "storage": {"endpoint": server.endpoint},
    }
    spec["training"] |= {"gradientCheckpointing": False, "loss": "all", "checkpoints": {"everySteps": every}}
    job = scratch / "job.yaml"
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bench"}}
    job.write_text(json.dumps({**head, "spec": spec}))
    return _watch([sys.executable, "-m", "finetune_trainer", "run", str(job), "--work-dir", str(scratch / "work")])


def _plain(server: S3Server, scratch: Path, steps: int) -> Times:
    return _watch([sys.executable, str(_PLAIN), server.endpoint, str(scratch / "plain"), str(steps)])


def _watch(line: list[str]) -> Times:
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
    }
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    begun, seen = time.monotonic(), list[tuple[int, float]]()
    with subprocess.Popen(
        line, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        output = []
        for text in process.stdout or ():
            output.append(text)
            if found := _STEP.search(text):
                seen.append((int(found.group(1)), time.monotonic()))
    if process.returncode or len(seen) < 2:
        raise SystemExit("".join(output))
    (first, at), (last, until) = seen[0], seen[-1]
    return at - begun, (until - at) / (last - first)
