"""Killed twenty times without warning, at any moment: the result is the undisturbed run's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.trainer.pods import Pods, make_pods
from tests.trainer.tiny_model import QUIET

from finetune_trainer.contract import CONFIG_ENV, Reason

if TYPE_CHECKING:
    from tests.trainer.conftest import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]

TRAINING = {"maxSteps": 240, "checkpoints": {"everySteps": 3}, "lora": {"dropout": 0.1, "rank": 4}}
# (what the log says before, seconds after it at most)
MOMENTS = [
    *[("", 1.0)] * 4,
    *[("stage: Training", 1.0)] * 6,
    *[("is stored", 0.2)] * 7,  # the next upload is under way, or older ones are being removed
    *[("stage: Exporting", 0.3)],
    *[("stage: Uploading", 0.02)] * 2,
]
_STORED = re.compile(r"checkpoint: step (\d+) is stored")
_RESUMED = re.compile(r"going on from step (\d+)")
FORKS = """
import importlib, json, os, sys
for name in ("torch", "transformers", "datasets", "peft", "trl", "transformers.models.llama.modeling_llama"):
    importlib.import_module(name)
from finetune_trainer import __main__ as command

print("ready", flush=True)
for line in sys.stdin:
    environment = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.clear()
        os.environ.update(environment)
        for number in (1, 2):
            os.dup2(os.open(environment["LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.argv = ["finetune_trainer", "run"]
        command.main()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass
class Forks:
    """Starts trainers that need not import torch again: a process each, but seconds quicker."""

    process: subprocess.Popen[str]

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def start(self, pods: Pods) -> int:
        assert self.process.stdin
        (pods.folder / "log").write_text("")
        config = json.dumps(pods.config(**TRAINING).to_json())
        environment = pods.environment | {CONFIG_ENV: config, "LOG": str(pods.folder / "log")}
        self.process.stdin.write(json.dumps(environment) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def kill_at(self, pods: Pods, after: str, seconds: float) -> bool:
        """Whether the kill came before the end; the last ones race with it."""
        child = self.start(pods)
        deadline = time.monotonic() + 120
        while after not in pods.log and "Complete" not in pods.log:
            assert time.monotonic() < deadline, pods.log
            time.sleep(0.01)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        status = int(self.line())
        assert status in (0, signal.SIGKILL), pods.log
        return status == signal.SIGKILL

    def run(self, pods: Pods) -> Reason:
        self.start(pods)
        self.line()
        return pods.outcome.reason


@pytest.fixture
def forks() -> Iterator[Forks]:
    line = [sys.executable, "-W", "ignore", "-c", FORKS]
    # One thread, before torch is imported: its pool of threads does not survive a fork.
    environment = {**os.environ, **QUIET, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        made = Forks(process)
        assert made.line() == "ready"
        yield made
        process.kill()


def check_nothing_was_lost(pods: Pods, stored: int) -> int:
    """A start goes on at least from what the log of those before said to be stored; the newest step stored since."""
    resumed = _RESUMED.search(pods.log)
    if resumed:
        assert int(resumed[1]) >= stored, pods.log
    elif stored and "step 1/" in pods.log:
        pytest.fail(f"trained afresh although step {stored} was stored: {pods.log}")
    return max([stored, *map(int, _STORED.findall(pods.log))])


def test_killed_twenty_times(s3: S3Server, tmp_path: Path, forks: Forks) -> None:
    make = make_pods(s3, tmp_path)
    whole, killed = make("whole"), make("killed")
    assert forks.run(whole) is Reason.COMPLETED, whole.log
    dice, stored, kills = random.Random(20), 0, 0
    for after, limit in MOMENTS:
        kills += forks.kill_at(killed, after, dice.uniform(0, limit))
        stored = check_nothing_was_lost(killed, stored)
    assert kills >= len(MOMENTS) - 3  # a quick machine ends before the last ones
    assert forks.run(killed) in (Reason.COMPLETED, Reason.ALREADY_COMPLETE), killed.log
    expected = whole.metrics()
    for name in ("trainLoss", "finalLoss", "tokens", "supervisedTokens", "steps"):
        assert killed.metrics()[name] == pytest.approx(expected[name], rel=1e-6), name
    check_whole(s3, killed.output)


def check_whole(s3: S3Server, output: str) -> None:
    for file in json.loads(s3.get(f"{output}/manifest.json"))["files"]:
        content = s3.get(f"{output}/{file['path']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"], file["path"]
    assert not [key for key in s3.keys(output) if "/.checkpoints/" in key]
