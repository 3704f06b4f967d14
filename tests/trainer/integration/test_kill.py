"""Killed twenty times without warning, at any moment: the result is the undisturbed run's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(900)]

TRAINING = {"maxSteps": 240, "checkpoints": {"everySteps": 3}, "lora": {"dropout": 0.1, "rank": 4}}
# (text in the log, maximum seconds after it)
MOMENTS = [
    *[("", 1.0)] * 4,
    *[("stage: Training", 1.0)] * 6,
    *[("checkpoint: stored step", 0.2)] * 7,  # the next upload is under way, or older ones are being removed
    *[("stage: Exporting", 0.3)],
    *[("stage: Uploading", 0.02)] * 2,
]
_STORED = re.compile(r"checkpoint: stored step (\d+)")
_RESUMED = re.compile(r"resuming from step (\d+)")


def kill_after(forks: ForkServer, pods: TrainerRun, after: str, seconds: float) -> bool:
    """Kill the run after `after` is logged and `seconds` have passed. Return whether it was still running."""
    child = forks.start(pods, **TRAINING)
    deadline = time.monotonic() + 120
    while after not in pods.log and "Complete" not in pods.log:
        assert time.monotonic() < deadline, pods.log
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = forks.wait(child)
    assert status in (0, -signal.SIGKILL), pods.log
    return status == -signal.SIGKILL


def assert_nothing_lost(pods: TrainerRun, stored: int) -> int:
    """Check that a start resumes from the last stored step or a later one. Return the last step stored since."""
    resumed = _RESUMED.search(pods.log)
    if resumed:
        assert int(resumed[1]) >= stored, pods.log
    elif stored and "step 1/" in pods.log:
        pytest.fail(f"trained afresh although step {stored} was stored: {pods.log}")
    return max([stored, *map(int, _STORED.findall(pods.log))])


def test_run_killed_twenty_times_matches_uninterrupted(s3: S3Server, tmp_path: Path, forks: ForkServer) -> None:
    make = make_run_factory(s3, tmp_path, forks.build_model)
    uninterrupted, killed = make("whole"), make("killed")
    assert forks.run(uninterrupted, **TRAINING) is Reason.COMPLETED, uninterrupted.log
    dice, stored, kills = random.Random(20), 0, 0
    for after, limit in MOMENTS:
        kills += kill_after(forks, killed, after, dice.uniform(0, limit))
        stored = assert_nothing_lost(killed, stored)
    assert kills >= len(MOMENTS) - 3  # a quick machine ends before the last ones
    assert forks.run(killed, **TRAINING) in (Reason.COMPLETED, Reason.ALREADY_COMPLETE), killed.log
    expected = uninterrupted.read_metrics()
    for name in ("trainLoss", "finalLoss", "tokens", "supervisedTokens", "steps"):
        assert killed.read_metrics()[name] == pytest.approx(expected[name], rel=1e-6), name
    assert_result_complete(s3, killed.output)


def assert_result_complete(s3: S3Server, output: str) -> None:
    for file in json.loads(s3.get(f"{output}/manifest.json"))["files"]:
        content = s3.get(f"{output}/{file['path']}")
        assert hashlib.sha256(content).hexdigest() == file["sha256"], file["path"]
    assert not [key for key in s3.list_keys(output) if "/.checkpoints/" in key]
