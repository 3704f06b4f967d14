"""The termination message names the newest stored checkpoint, even if the run was killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from tests.support.trainer.trainer_process import TrainerRun, make_run_factory

from finetune_trainer.contract import OUTCOME_PATH_ENV, CheckpointRecord, Outcome, Progress, Reason, Stage
from finetune_trainer.distributed import topology
from finetune_trainer.telemetry import http_server, termination_message
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

TIME = "2026-11-23T08:00:00Z"


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(path))
    return path


def _make_progress(step: int | None) -> Progress:
    time = TIME if step is not None else None
    return Progress(stage=Stage.TRAINING, last_checkpoint_step=step, last_checkpoint_time=time, last_update_time=TIME)


def _read_record(path: Path) -> tuple[int, str]:
    checkpoint = CheckpointRecord.model_validate_json(path.read_bytes()).checkpoint
    return checkpoint.step, checkpoint.time


def test_record_after_each_checkpoint_names_newest(message: Path) -> None:
    termination_message.record_checkpoint(_make_progress(None))
    assert message.read_bytes() == b""
    inode = message.stat().st_ino
    for step in (5, 10, 1_000_000, 7):  # a shorter record replaces a longer one completely
        termination_message.record_checkpoint(_make_progress(step))
        assert _read_record(message) == (step, TIME)
    assert message.stat().st_ino == inode  # the kubelet reads the file that it has mounted


def test_record_is_not_parsed_as_outcome(message: Path) -> None:
    termination_message.record_checkpoint(_make_progress(5))
    with pytest.raises(ValidationError):
        Outcome.model_validate_json(message.read_bytes(), extra="ignore")


def test_outcome_is_not_replaced_by_late_record(message: Path) -> None:
    termination_message.record_checkpoint(_make_progress(5))
    termination_message.write_outcome(termination_message.build_outcome(Reason.DATA_INVALID, ""))
    termination_message.record_checkpoint(_make_progress(10))
    assert Outcome.model_validate_json(message.read_bytes()).reason is Reason.DATA_INVALID


def test_outcome_of_launcher_keeps_record_of_killed_worker(message: Path) -> None:
    termination_message.record_checkpoint(_make_progress(5))
    termination_message.write_outcome(
        termination_message.OutcomeRecorder(ProgressReporter()).complete(
            termination_message.build_outcome(Reason.PREEMPTED, "asked to stop")
        )
    )
    progress = Outcome.model_validate_json(message.read_bytes()).progress
    assert progress
    assert (progress.last_checkpoint_step, progress.last_checkpoint_time) == (5, TIME)


def test_record_killed_before_truncation_is_readable(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test the file that remains after a kill between the two system calls."""
    message.write_text("x" * 500)
    monkeypatch.setattr(os, "ftruncate", lambda *_: None)
    termination_message.record_checkpoint(_make_progress(5))
    assert message.stat().st_size == 500
    assert _read_record(message) == (5, TIME)


def test_record_is_written_by_rank_zero_only(message: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    termination_message.record_checkpoint(_make_progress(5))
    assert message.read_bytes() == b""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(topology.NODE_FOLDER_ENV, str(message.parent))
    termination_message.record_checkpoint(
        _make_progress(5)
    )  # a worker's outcome goes to its launcher, the record to the pod
    assert _read_record(message) == (5, TIME)


def test_record_unwritable_file_does_not_end_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(OUTCOME_PATH_ENV, str(tmp_path / "no-such-folder" / "message"))
    termination_message.record_checkpoint(_make_progress(5))
    assert "no-such-folder" in caplog.text


@pytest.fixture
def pods(s3: S3Server, tmp_path: Path) -> Callable[[str], TrainerRun]:
    return make_run_factory(s3, tmp_path)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.s3
@pytest.mark.training
@pytest.mark.timeout(600)
def test_record_survives_sigkill_without_progress_server(pods: Callable[[str], TrainerRun], taken_port: int) -> None:
    job = pods("job")
    job.environment[http_server.PORT_ENV] = str(taken_port)
    with job.start(checkpoints={"everySteps": 3}) as process:
        job.wait_for(process, "stored step 6 in")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    step, time = _read_record(job.folder / "outcome")
    assert step >= 6
    assert f"stored step {step} in" in job.log

    (job.folder / "outcome").write_bytes(b"")  # each attempt is another container
    with job.start(checkpoints={"everySteps": 1000}) as process:
        job.wait_for(process, "learning rate")
        process.kill()
    assert "not served" in job.log
    resumed, since = _read_record(job.folder / "outcome")
    assert f"resuming from step {resumed}" in job.log
    assert (resumed, since) >= (step, time)
