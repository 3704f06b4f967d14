"""Tests of the output lock: which run gets it, which runs wait, and which runs are refused."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import Fault

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import output_lock as claims
from finetune_trainer.publishing.output_lock import LockTiming, OutputLock
from finetune_trainer.storage import S3, Location
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

FAST_TIMING = LockTiming(heartbeat_seconds=0.2, stale_seconds=3, poll_seconds=0.1)
PATIENT_TIMING = LockTiming(heartbeat_seconds=0.2, stale_seconds=30, poll_seconds=0.1)
SILENT_TIMING = LockTiming(heartbeat_seconds=60, stale_seconds=1.0, poll_seconds=0.1)
MakeLock = Callable[..., OutputLock]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"s3://results/{tmp_path.name}/"


@pytest.fixture
def make(s3: S3Server, prefix: str) -> Iterator[MakeLock]:
    locks: list[OutputLock] = []

    def make(run: str, timing: LockTiming = FAST_TIMING) -> OutputLock:
        locks.append(OutputLock(S3(s3.storage), Location.parse(prefix), run, "sha256:c", timing))
        return locks[-1]

    yield make
    for lock in locks:  # their threads with them
        lock.release()


def read_lock_record(s3: S3Server, prefix: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(s3.get(prefix + ".claim.json"))
    return content


def assert_output_busy(work: Callable[[], None]) -> str:
    with pytest.raises(TrainerError) as error:
        work()
    assert error.value.reason is Reason.OUTPUT_BUSY
    return error.value.message


def test_output_lock_names_owner_beats_and_is_released(s3: S3Server, prefix: str, make: MakeLock) -> None:
    claim = make("a")
    claim.acquire(ProgressReporter())
    first = read_lock_record(s3, prefix)
    assert {key: first[key] for key in ("runId", "configDigest", "attempt")} == {
        "runId": "a",
        "configDigest": "sha256:c",
        "attempt": 1,
    }
    time.sleep(0.8)
    assert read_lock_record(s3, prefix)["beat"] != first["beat"]
    claim.check_held()
    claim.release()
    assert s3.list_keys(prefix) == []


def test_output_lock_held_by_active_run_is_refused_soon(make: MakeLock) -> None:
    make("a").acquire(ProgressReporter())
    message = assert_output_busy(lambda: make("b").acquire(ProgressReporter()))
    assert "run a on " in message
    assert "uses this output" in message


def test_output_lock_released_is_not_rewritten_by_heartbeat(s3: S3Server, prefix: str, make: MakeLock) -> None:
    for _ in range(5):
        claim = make("a", LockTiming(heartbeat_seconds=0.01))
        claim.acquire(ProgressReporter())
        time.sleep(0.05)
        claim.release()
        time.sleep(0.1)
        assert s3.list_keys(prefix) == []


def test_output_lock_release_with_dead_store_times_out(
    s3: S3Server, prefix: str, make: MakeLock, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_RELEASE_TIMEOUT_SECONDS", 0.5)
    claim = make("a", SILENT_TIMING)
    claim.acquire(ProgressReporter())
    proxy.faults = [Fault("503", "GET", ".claim.json", 100), Fault("503", "HEAD", ".claim.json", 100)]
    started_at = time.monotonic()
    claim.release()
    assert time.monotonic() - started_at < 2
    proxy.faults = []


def test_output_lock_waiting_run_reports_stage(make: MakeLock) -> None:
    make("a", SILENT_TIMING).acquire(ProgressReporter())
    progress, stages = ProgressReporter(), set[Stage]()
    waiting = threading.Thread(target=make("b").acquire, args=(progress,))
    waiting.start()
    while waiting.is_alive():
        stages.add(progress.get_latest().stage)
        time.sleep(0.02)
    assert stages == {Stage.DOWNLOADING, Stage.WAITING_FOR_OUTPUT}
    assert progress.get_latest().stage is Stage.DOWNLOADING


def test_output_lock_refused_run_restores_stage(make: MakeLock) -> None:
    make("a").acquire(ProgressReporter())
    progress = ProgressReporter()
    assert_output_busy(lambda: make("b").acquire(progress))
    assert progress.get_latest().stage is Stage.DOWNLOADING  # an older reader would not understand the outcome


def test_output_lock_stale_lock_is_taken_over(s3: S3Server, prefix: str, make: MakeLock) -> None:
    dead = make("a", SILENT_TIMING)
    dead.acquire(ProgressReporter())
    started_at = time.monotonic()
    make("b").acquire(ProgressReporter())
    assert time.monotonic() - started_at >= FAST_TIMING.stale_seconds
    assert (read_lock_record(s3, prefix)["runId"], read_lock_record(s3, prefix)["attempt"]) == ("b", 2)
    assert "run b on" in assert_output_busy(dead.check_held)  # should it come back to life
    dead.release()
    assert read_lock_record(s3, prefix)["runId"] == "b"


def test_output_lock_next_attempt_takes_over_at_once(make: MakeLock) -> None:
    first, second = make("a"), make("a", SILENT_TIMING)
    first.acquire(ProgressReporter())
    started_at = time.monotonic()
    second.acquire(ProgressReporter())
    assert time.monotonic() - started_at < FAST_TIMING.stale_seconds
    time.sleep(0.8)
    assert "another attempt of this run" in assert_output_busy(first.check_not_lost)  # by its own heartbeat
    second.check_held()


def test_output_lock_24_concurrent_runs_one_acquires(s3: S3Server, prefix: str, make: MakeLock) -> None:
    start = threading.Barrier(24)

    def attempt(number: int) -> Reason | None:
        start.wait()
        try:
            make(f"run-{number}", PATIENT_TIMING).acquire(ProgressReporter())
        except TrainerError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(attempt, range(24)))
    assert ends.count(None) == 1
    assert ends.count(Reason.OUTPUT_BUSY) == 23
    assert read_lock_record(s3, prefix)["runId"] == f"run-{ends.index(None)}"


def test_output_lock_deleted_record_is_rewritten(s3: S3Server, prefix: str, make: MakeLock) -> None:
    claim = make("a")
    claim.acquire(ProgressReporter())
    s3.client.delete_object(Bucket="results", Key=prefix.removeprefix("s3://results/") + ".claim.json")
    time.sleep(0.8)
    assert read_lock_record(s3, prefix)["runId"] == "a"
    claim.check_held()


@pytest.mark.parametrize("content", [b"", b"no json", b'{"runId": 7}'])
def test_output_lock_unreadable_record_counts_as_stale(
    s3: S3Server, prefix: str, make: MakeLock, content: bytes
) -> None:
    s3.put(prefix + ".claim.json", content)
    make("b").acquire(ProgressReporter())
    assert read_lock_record(s3, prefix)["runId"] == "b"


def test_output_lock_without_conditional_writes_is_logged(
    s3: S3Server, prefix: str, make: MakeLock, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.ignores_conditions = True
    claim = make("a")
    claim.acquire(ProgressReporter())
    assert "does not support conditional writes" in caplog.text
    time.sleep(0.5)
    claim.check_held()
    assert "uses this output" in assert_output_busy(lambda: make("b").acquire(ProgressReporter()))


@pytest.mark.parametrize("kind", ["503", "500", "409", "412", "reset", "delay", "late"])
def test_output_lock_transient_store_errors_are_survived(
    s3: S3Server, prefix: str, make: MakeLock, proxy: FaultyProxy, kind: str
) -> None:
    proxy.faults = [Fault(kind, "PUT", ".claim.json")]
    claim = make("a")
    claim.acquire(ProgressReporter())
    proxy.faults = [Fault(kind, "PUT", ".claim.json")]  # and for a sign of life
    time.sleep(3)
    claim.check_held()
    assert proxy.faults[0].times == 0
    assert read_lock_record(s3, prefix)["runId"] == "a"
