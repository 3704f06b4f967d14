"""Trainer pods as local processes that tests start, observe by their log, kill and start again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.tiny_model import QUIET_ENV

from finetune_trainer.contract import (
    CONFIG_ENV,
    OUTCOME_PATH_ENV,
    RUN_ID_ENV,
    SCRATCH_ENV,
    Outcome,
    TrainerConfig,
)
from finetune_trainer.telemetry import http_server

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

ROOT = Path(__file__).parents[3]
STEPS = 20
"""Number of steps; small enough that each step is logged."""
BUILD_MODEL_SCRIPT = (
    "import sys, pathlib; from tests.support.trainer import tiny_model; tiny_model.build(pathlib.Path(sys.argv[1]))"
)
_STEP_LINE = re.compile(r"step (\d+)/\d+ loss (-?[\d.]+)")


@dataclass
class TrainerRun:
    """A run whose trainers are started as processes, one after the other."""

    s3: S3Server
    folder: Path
    output: str
    environment: dict[str, str]
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Changes to other sections of the config than `training`."""

    def config(self, **training: Any) -> TrainerConfig:
        content: dict[str, Any] = {
            "model": {"uri": "s3://models/resume/", "maxLength": 64},
            "dataset": {"sources": [{"uri": "s3://data/resume.jsonl"}]},
            "training": {
                "maxSteps": STEPS,
                "backend": "transformers",
                "batchSize": 1,
                "gradientAccumulation": 2,
                "learningRate": 1e-2,
                "lora": {"dropout": 0.2, "rank": 4},
                "checkpoints": {"everySteps": 5},
                **training,
            },
            "output": {"uri": self.output},
            "storage": {"endpoint": self.s3.endpoint},
        }
        for section, changes in self.changes.items():
            content[section] = content.get(section, {}) | changes
        return TrainerConfig.model_validate(content)

    def start(self, **training: Any) -> subprocess.Popen[str]:
        environment = self.environment | {CONFIG_ENV: json.dumps(self.config(**training).to_json())}
        line = [sys.executable, "-m", "finetune_trainer", "run"]
        log = (self.folder / "log").open("w")
        with log:
            return subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, process: subprocess.Popen[str], text: str) -> None:
        while text not in self.log:
            assert process.poll() is None, self.log
            time.sleep(0.02)

    def wait_for_log(self, text: str, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    def run(self, **training: Any) -> Outcome:
        with self.start(**training) as process:
            process.wait()
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        return Outcome.model_validate_json((self.folder / "outcome").read_bytes())

    def read_metrics(self) -> dict[str, float]:
        assert self.outcome.result, self.log
        return self.outcome.result.metrics

    def read_losses(self) -> dict[int, str]:
        return {int(step): loss for step, loss in _STEP_LINE.findall(self.log)}


def build_model(folder: Path) -> None:
    """Build the tiny model in a separate process, because libraries print warnings when they are first compiled."""
    subprocess.run([sys.executable, "-c", BUILD_MODEL_SCRIPT, folder], cwd=ROOT, check=True, capture_output=True)


def upload_model(s3: S3Server, folder: Path, build_model: Callable[[Path], None]) -> None:
    """Upload the tiny model if it is not in the store yet."""
    if s3.list_keys("s3://models/resume/"):
        return
    build_model(folder)
    for path in folder.iterdir():
        s3.put(f"s3://models/resume/{path.name}", path.read_bytes())


def make_rows(count: int) -> bytes:
    content = [{"prompt": f"What is {n}?", "completion": f"It is {'very ' * (n % 5)}{n}."} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in content).encode()


def make_run_factory(
    s3: S3Server, tmp_path: Path, build: Callable[[Path], None] = build_model
) -> Callable[[str], TrainerRun]:
    """Return a function that creates a run by its name."""
    (tmp_path / "model").mkdir()
    upload_model(s3, tmp_path / "model", build)
    s3.put("s3://data/resume.jsonl", make_rows(16))

    def make_run(name: str) -> TrainerRun:
        folder = tmp_path / name
        (folder / "scratch").mkdir(parents=True)
        environment = {
            **os.environ,
            **QUIET_ENV,
            OUTCOME_PATH_ENV: str(folder / "outcome"),
            SCRATCH_ENV: str(folder / "scratch"),
            RUN_ID_ENV: "uid-" + name,
            http_server.PORT_ENV: "0",
            "OMP_NUM_THREADS": "1",
        }
        return TrainerRun(s3, folder, f"s3://results/{tmp_path.name}/{name}", environment)

    return make_run
