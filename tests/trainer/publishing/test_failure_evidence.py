"""Log and findings of a run that ends with an exception: what is stored, and that the exception stays the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from tests.support.trainer.faulty_proxy import Fault
from tests.support.trainer.untrained_runs import build_config, prefix, publish, run_untrained

from finetune_trainer.__main__ import StopSignalReceived
from finetune_trainer.cli.run import run_or_launch
from finetune_trainer.contract import (
    CONFIG_ENV,
    NODE_RANK_ENV,
    NODES_ENV,
    OUTCOME_PATH_ENV,
    RENDEZVOUS_ENV,
    Outcome,
    Reason,
    TrainerConfig,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import failure_evidence
from finetune_trainer.run_setup import open_run, resolve_run
from finetune_trainer.telemetry.failures import describe_failure
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

__all__ = ["prefix"]
pytestmark = pytest.mark.s3


def fail_run(config: TrainerConfig, scratch: Path, error: BaseException) -> Outcome:
    """Raise the error in a run that has begun, and return the outcome that the operator gets."""
    recorder = OutcomeRecorder(ProgressReporter())
    with pytest.raises(type(error)) as caught, open_run(resolve_run(config), scratch, recorder):
        raise error
    assert caught.value is error
    outcome = describe_failure(error) if isinstance(error, Exception) else Outcome(reason="Preempted", message="x")
    return recorder.complete(outcome)


def fail_resolution(config: TrainerConfig, scratch: Path) -> Outcome:
    """Start a run whose settings or inputs are refused, and return the outcome that the operator gets."""
    recorder = OutcomeRecorder(ProgressReporter())
    with pytest.raises(TrainerError) as caught:
        run_or_launch(config, scratch, recorder)
    return recorder.complete(describe_failure(caught.value))


def list_names(s3: S3Server, uri: str) -> list[str]:
    return [f"s3://results/{key}".removeprefix(uri) for key in s3.list_keys(uri)]


def test_bug_leaves_traceback_without_personal_data(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    outcome = fail_run(config, tmp_path, KeyError("a.b@example.com"))
    assert outcome.reason is Reason.INTERNAL_ERROR
    folder = f"{prefix}/.failed/{config.digest().removeprefix('sha256:')[:12]}"
    assert outcome.log_uri == f"{folder}/run.log"
    log = s3.get(outcome.log_uri).decode()
    assert "Traceback (most recent call last)" in log
    assert "in fail_run" in log
    findings: dict[str, Any] = json.loads(s3.get(f"{folder}/findings.json"))
    assert (findings["kind"], findings["configDigest"]) == ("RunFindings", config.digest())
    assert (findings["reason"], findings["message"]) == ("InternalError", "KeyError: '[EMAIL]'")
    assert "example.com" not in log
    assert list_names(s3, prefix) == [f"{folder.removeprefix(prefix)}/{name}" for name in ("findings.json", "run.log")]


STALLED_SCRIPT = """
import sys, time
from pathlib import Path
from finetune_trainer.config import loader
from finetune_trainer.run_setup import open_run, resolve_run
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

config = loader.load_from_environment()
impatient = config.training.model_copy(update={"stall_seconds": 1})
resolved = resolve_run(config.model_copy(update={"training": impatient}))
with open_run(resolved, Path(sys.argv[1]), OutcomeRecorder(ProgressReporter())):
    time.sleep(50)
"""


def test_stalled_run_leaves_stacks(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    variables = {
        CONFIG_ENV: json.dumps(build_config(s3, prefix).to_json()),
        OUTCOME_PATH_ENV: str(tmp_path / "outcome"),
    }
    command = [sys.executable, "-c", STALLED_SCRIPT, tmp_path]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    outcome = Outcome.model_validate_json((tmp_path / "outcome").read_bytes())
    assert (done.returncode, outcome.reason) == (75, Reason.TRAINING_STALLED), done.stderr
    assert outcome.log_uri
    log = s3.get(outcome.log_uri).decode()
    assert 'File "<string>", line' in log
    assert "TrainingStalled: no progress for 1 s" in log


def test_next_attempt_replaces_evidence_and_success_removes_it(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    config = build_config(s3, prefix)
    fail_run(config, tmp_path, TrainerError(Reason.STORAGE_CORRUPT, "first"))
    outcome = fail_run(config, tmp_path, TrainerError(Reason.DISK_FULL, "second"))
    assert outcome.log_uri
    log = s3.get(outcome.log_uri).decode()
    assert "DiskFull: second" in log
    assert "first" not in log
    assert len(list_names(s3, prefix)) == 2
    publish(config, tmp_path)
    assert not [name for name in list_names(s3, prefix) if name.startswith("/.")]
    evidence = f"{prefix}/.failed/{config.digest().removeprefix('sha256:')[:12]}/run.log"
    s3.put(evidence, b"of an attempt that died after publishing")
    assert run_untrained(config, tmp_path).reason is Reason.ALREADY_COMPLETE
    assert not [name for name in list_names(s3, prefix) if name.startswith("/.")]


def test_success_keeps_evidence_of_other_config(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    other = fail_run(build_config(s3, prefix, training={"maxSteps": 2}), tmp_path, MemoryError())
    assert other.log_uri
    publish(build_config(s3, prefix), tmp_path)
    assert b"OutOfMemory: not enough memory on the host" in s3.get(other.log_uri)


WITHOUT_EVIDENCE = {
    "stopped": StopSignalReceived("SIGTERM"),
    "another rank failed": TrainerError(Reason.PEER_LOST, "x"),
    "output of another run": TrainerError(Reason.OUTPUT_EXISTS, "x"),
    "output in use": TrainerError(Reason.OUTPUT_BUSY, "x"),
}


@pytest.mark.parametrize("error", WITHOUT_EVIDENCE.values(), ids=WITHOUT_EVIDENCE)
def test_run_that_did_not_fail_by_itself_leaves_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, error: BaseException
) -> None:
    assert fail_run(build_config(s3, prefix), tmp_path, error).log_uri is None
    assert list_names(s3, prefix) == []


def test_evidence_is_not_stored_over_output_of_run_that_took_the_lock(
    s3: S3Server, prefix: str, tmp_path: Path
) -> None:
    recorder, error = OutcomeRecorder(ProgressReporter()), TrainerError(Reason.DISK_FULL, "x")
    resolved = resolve_run(build_config(s3, prefix))

    def lose_lock_and_fail() -> NoReturn:
        s3.put(f"{prefix}/.claim.json", b'{"runId": "other", "holder": "other"}')
        raise error

    with pytest.raises(TrainerError) as caught, open_run(resolved, tmp_path, recorder):
        lose_lock_and_fail()
    assert caught.value is error
    assert recorder.facts.log_uri is None
    assert list_names(s3, prefix) == ["/.claim.json"]


def test_store_without_response_delays_failure_only_until_timeout(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure_evidence, "_TIMEOUT_SECONDS", 0.5)
    proxy.stalled_key = ".failed/"
    started_at = time.monotonic()
    outcome = fail_run(build_config(s3, prefix), tmp_path, TrainerError(Reason.DISK_FULL, "the disk is full"))
    assert time.monotonic() - started_at < 10
    assert (outcome.reason, outcome.message, outcome.log_uri) == (Reason.DISK_FULL, "the disk is full", None)


def test_store_that_rejects_evidence_changes_no_reason(
    s3: S3Server, prefix: str, tmp_path: Path, proxy: FaultyProxy
) -> None:
    proxy.faults.append(Fault("400", "PUT", ".failed/", times=9))
    outcome = fail_run(build_config(s3, prefix), tmp_path, TrainerError(Reason.DISK_FULL, "the disk is full"))
    assert (outcome.reason, outcome.message, outcome.log_uri) == (Reason.DISK_FULL, "the disk is full", None)


REFUSED = {
    "data": ({"dataset": {"sources": [{"uri": "s3://data/never-stored/"}]}}, Reason.DATA_NOT_FOUND),
    "model": ({"model": {"uri": "s3://models/never-stored/"}}, Reason.MODEL_NOT_FOUND),
    "settings": ({"model": {"uri": "s3://models/tiny", "chatTemplateName": "none"}}, Reason.CONFIG_INVALID),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_inputs_leave_findings(
    s3: S3Server, prefix: str, tmp_path: Path, changes: dict[str, Any], reason: Reason
) -> None:
    config = build_config(s3, prefix, **changes)
    outcome = fail_resolution(config, tmp_path)
    assert outcome.reason is reason
    folder = f"/.failed/{config.digest().removeprefix('sha256:')[:12]}"
    assert outcome.log_uri == f"{prefix}{folder}/run.log"
    assert f"{reason}: {outcome.message}" in s3.get(outcome.log_uri).decode()
    findings = json.loads(s3.get(f"{prefix}{folder}/findings.json"))
    assert (findings["reason"], findings["message"]) == (reason, outcome.message)
    assert list_names(s3, prefix) == [f"{folder}/findings.json", f"{folder}/run.log"]
    assert not list(tmp_path.glob("finetune-*"))


def test_refused_inputs_of_other_nodes_leave_nothing(
    s3: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ((NODES_ENV, "2"), (NODE_RANK_ENV, "1"), (RENDEZVOUS_ENV, "node:29400")):
        monkeypatch.setenv(name, value)
    outcome = fail_resolution(build_config(s3, prefix, **REFUSED["data"][0]), tmp_path)
    assert (outcome.reason, outcome.log_uri) == (Reason.DATA_NOT_FOUND, None)
    assert list_names(s3, prefix) == []


def test_refused_output_of_other_config_stays_unchanged(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    publish(build_config(s3, prefix, training={"maxSteps": 2}), tmp_path / "other")
    names = list_names(s3, prefix)
    (tmp_path / "scratch").mkdir()
    outcome = fail_resolution(build_config(s3, prefix), tmp_path / "scratch")
    assert (outcome.reason, outcome.log_uri) == (Reason.OUTPUT_EXISTS, None)
    assert list_names(s3, prefix) == names


def test_refused_inputs_and_unwritable_output_change_no_reason(s3: S3Server, prefix: str, tmp_path: Path) -> None:
    del prefix
    config = build_config(s3, "s3://no-such-bucket/x", **REFUSED["settings"][0])
    outcome = fail_resolution(config, tmp_path)
    assert (outcome.reason, outcome.log_uri) == (Reason.CONFIG_INVALID, None)
