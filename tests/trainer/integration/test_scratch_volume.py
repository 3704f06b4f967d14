"""A run whose scratch volume is too small ends as DiskFull: before the download, or when the volume is full."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.small_disk import fill_disk, mount_disk
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import SCRATCH_BYTES_ENV, SCRATCH_ENV, ExitCode, Reason

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer
    from tests.support.trainer.s3_server import S3Server

pytestmark = [pytest.mark.s3, pytest.mark.training, pytest.mark.timeout(600)]


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path, forks: ForkServer) -> Callable[[str], TrainerRun]:
    return make_run_factory(s3, tmp_path, forks.build_model)


def assert_disk_full(run: TrainerRun, message: str) -> None:
    """Assert that the run ended as DiskFull with this message, and that its log was stored."""
    assert run.outcome.reason is Reason.DISK_FULL, run.log
    assert message in run.outcome.message
    assert run.outcome.log_uri, run.log
    assert "DiskFull: " in run.s3.get(run.outcome.log_uri).decode()


def test_volume_smaller_than_listed_inputs_is_refused_before_download(
    pods: Callable[[str], TrainerRun], forks: ForkServer
) -> None:
    run = pods("small")
    run.environment[SCRATCH_BYTES_ENV] = "100000"
    assert forks.run(run) is Reason.DISK_FULL, run.log
    assert_disk_full(run, "the run needs at least ")
    assert "(base model " in run.outcome.message
    assert "of 97.7 KiB left; set compute.scratch.size to 1Gi or more" in run.outcome.message
    assert "inputs: downloaded" not in run.log


def test_disk_that_fills_during_training_ends_run(
    pods: Callable[[str], TrainerRun], tmp_path: Path, forks: ForkServer
) -> None:
    run = pods("full")
    with mount_disk(tmp_path / "disk", 64 * 2**20) as disk:
        run.environment[SCRATCH_ENV] = str(disk)
        child = forks.start(run, maxSteps=10_000, checkpoints={"everySteps": 1})
        run.wait_for_log("stored step 1 in")
        fill_disk(disk)
        assert forks.wait(child) == ExitCode.PERMANENT
    assert_disk_full(run, "no space left on device; set compute.scratch.size to a larger size")


def test_volume_that_fills_during_training_ends_run(pods: Callable[[str], TrainerRun], forks: ForkServer) -> None:
    run = pods("evicted")
    run.environment[SCRATCH_BYTES_ENV] = str(64 * 2**20)
    child = forks.start(run, maxSteps=10_000, checkpoints={"everySteps": 1})
    run.wait_for_log("stored step 1 in")
    (run.folder / "scratch" / "cache").write_bytes(b"x" * 64 * 2**20)
    assert forks.wait(child) == ExitCode.PERMANENT
    assert_disk_full(run, "the scratch volume is full in stage Training: ")
