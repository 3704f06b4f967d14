"""Trainer pods as processes: started, watched by their log, killed, started again."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.trainer.tiny_model import QUIET

from finetune_trainer import server
from finetune_trainer.contract import (
    CONFIG_ENV,
    OUTCOME_PATH_ENV,
    RUN_ID_ENV,
    SCRATCH_ENV,
    Outcome,
    TrainerConfig,
)

if TYPE_CHECKING:
    from tests.trainer.conftest import S3Server

ROOT = Path(__file__).parents[2]
STEPS = 20
"""Few enough that the log has each of them."""
BUILD = "import sys, pathlib; from tests.trainer import tiny_model; tiny_model.build(pathlib.Path(sys.argv[1]))"
_STEP = re.compile(r"step (\d+)/\d+ loss ([\d.]+)")


@dataclass
class Pods:
    """Starts trainer processes of one run, one after the other."""

    s3: S3Server
    folder: Path
    output: str
    environment: dict[str, str]

    def config(self, **training: Any) -> TrainerConfig:
        content = {
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

    def run(self, **training: Any) -> Outcome:
        with self.start(**training) as process:
            process.wait()
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        return Outcome.model_validate_json((self.folder / "outcome").read_bytes())

    def metrics(self) -> dict[str, float]:
        assert self.outcome.result, self.log
        return self.outcome.result.metrics

    def losses(self) -> dict[int, str]:
        return {int(step): loss for step, loss in _STEP.findall(self.log)}


def store_inputs(s3: S3Server, folder: Path) -> None:
    """The tiny model; made in a process of its own, since libraries warn when they are first compiled."""
    if s3.keys("s3://models/resume/"):
        return
    subprocess.run([sys.executable, "-c", BUILD, folder], cwd=ROOT, check=True, capture_output=True)
    for path in folder.iterdir():
        s3.put(f"s3://models/resume/{path.name}", path.read_bytes())


def rows(count: int) -> bytes:
    made = [{"prompt": f"What is {n}?", "completion": f"It is {'very ' * (n % 5)}{n}."} for n in range(count)]
    return "".join(json.dumps(each) + "\n" for each in made).encode()


def make_pods(s3: S3Server, tmp_path: Path) -> Callable[[str], Pods]:
    """By a run's name: its pods."""
    (tmp_path / "model").mkdir()
    store_inputs(s3, tmp_path / "model")
    s3.put("s3://data/resume.jsonl", rows(16))

    def make(name: str) -> Pods:
        folder = tmp_path / name
        (folder / "scratch").mkdir(parents=True)
        environment = {
            **os.environ,
            **QUIET,
            OUTCOME_PATH_ENV: str(folder / "outcome"),
            SCRATCH_ENV: str(folder / "scratch"),
            RUN_ID_ENV: "uid-" + name,
            server.PORT_ENV: "0",
            "OMP_NUM_THREADS": "1",
        }
        return Pods(s3, folder, f"s3://results/{tmp_path.name}/{name}", environment)

    return make
