"""A run that fills its scratch volume ends by itself, before the kubelet evicts its pod."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from tests.support.trainer.small_disk import mount_disk

from finetune_trainer.contract import OUTCOME_PATH_ENV, SCRATCH_BYTES_ENV, SCRATCH_ENV, Outcome, Reason

RUN_SCRIPT = """
import pathlib, sys, time
from finetune_trainer.contract import Outcome, Reason, Stage
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.scratch_watch import watch_scratch
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

scratch, megabytes, is_published = pathlib.Path(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3
recorder = OutcomeRecorder(ProgressReporter())
recorder.progress.update(stage=Stage.EXPORTING)
if is_published:
    recorder.record_published(Outcome(reason=Reason.COMPLETED, message="published at s3://b/k"))
(scratch / "home" / "cache").mkdir(parents=True)
with watch_scratch(recorder, scratch / "work", lambda outcome: print("evidence:", outcome.reason)):
    for number in range(megabytes):
        (scratch / "home" / "cache" / str(number)).write_bytes(b"x" * 2**20)
    time.sleep(0.7)
"""


def run_script(tmp_path: Path, scratch: Path, size: int | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {OUTCOME_PATH_ENV: str(tmp_path / "outcome"), SCRATCH_ENV: str(scratch)}
    environment |= {SCRATCH_BYTES_ENV: str(size)} if size else {}
    line = [sys.executable, "-c", RUN_SCRIPT, str(scratch), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("is_mounted", [False, True], ids=["folder of a larger disk", "file system of its own"])
def test_watch_full_volume_ends_run(tmp_path: Path, is_mounted: bool) -> None:
    disk = tmp_path / "disk"
    with mount_disk(disk, 14 * 2**20) if is_mounted else nullcontext():
        done = run_script(tmp_path, disk, 10 * 2**20, "12")
    assert done.returncode == 42, done.stderr
    assert "evidence: DiskFull" in done.stdout
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert outcome.reason is Reason.DISK_FULL
    assert "the scratch volume is full in stage Exporting: " in outcome.message
    assert f"MiB of 10.0 MiB in {disk} are used; set compute.scratch.size to 1Gi or more" in outcome.message


def test_watch_volume_with_room_is_left_alone(tmp_path: Path) -> None:
    done = run_script(tmp_path, tmp_path, 14 * 2**20, "12")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_watch_without_size_is_off(tmp_path: Path) -> None:
    done = run_script(tmp_path, tmp_path, None, "12")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_watch_full_volume_after_publishing_keeps_result(tmp_path: Path) -> None:
    done = run_script(tmp_path, tmp_path, 10 * 2**20, "12", "published")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert outcome.reason is Reason.COMPLETED
    assert outcome.message.startswith("published at s3://b/k; the scratch volume is full in stage Exporting: ")
