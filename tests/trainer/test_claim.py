"""One run at a time on an output: who gets it, who waits, who is told to go."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.trainer.faulty_proxy import Fault

from finetune_trainer.contract import Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing import output_lock as claims
from finetune_trainer.publishing.output_lock import LockTiming, OutputLock
from finetune_trainer.storage import S3, Location
from finetune_trainer.telemetry.progress import ProgressReporter

if TYPE_CHECKING:
    from tests.trainer.faulty_proxy import FaultyProxy
    from tests.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

QUICK = LockTiming(heartbeat_seconds=0.2, stale_seconds=3, poll_seconds=0.1)
PATIENT = LockTiming(heartbeat_seconds=0.2, stale_seconds=30, poll_seconds=0.1)
SILENT = LockTiming(heartbeat_seconds=60, stale_seconds=1.0, poll_seconds=0.1)
Make = Callable[..., OutputLock]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"s3://results/{tmp_path.name}/"


@pytest.fixture
def make(s3: S3Server, prefix: str) -> Iterator[Make]:
    made: list[OutputLock] = []

    def make(run: str, timing: LockTiming = QUICK) -> OutputLock:
        made.append(OutputLock(S3(s3.storage), Location.parse(prefix), run, "sha256:c", timing))
        return made[-1]

    yield make
    for each in made:  # their threads with them
        each.release()


def note(s3: S3Server, prefix: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(s3.get(prefix + ".claim.json"))
    return content


def refused(work: Callable[[], None]) -> str:
    with pytest.raises(TrainerError) as error:
        work()
    assert error.value.reason is Reason.OUTPUT_BUSY
    return error.value.message


def test_a_claim_says_whose_it_is_beats_and_goes_away(s3: S3Server, prefix: str, make: Make) -> None:
    claim = make("a")
    claim.acquire(ProgressReporter())
    first = note(s3, prefix)
    assert {key: first[key] for key in ("runId", "configDigest", "attempt")} == {
        "runId": "a",
        "configDigest": "sha256:c",
        "attempt": 1,
    }
    time.sleep(0.8)
    assert note(s3, prefix)["beat"] != first["beat"]
    claim.check_held()
    claim.release()
    assert s3.keys(prefix) == []


def test_another_run_is_told_soon_that_one_is_at_work(make: Make) -> None:
    make("a").acquire(ProgressReporter())
    message = refused(lambda: make("b").acquire(ProgressReporter()))
    assert "run a on " in message
    assert "is at work on this output" in message


def test_claim_after_release_is_not_written_again_by_its_heartbeat(s3: S3Server, prefix: str, make: Make) -> None:
    for _ in range(5):
        claim = make("a", LockTiming(heartbeat_seconds=0.01))
        claim.acquire(ProgressReporter())
        time.sleep(0.05)
        claim.release()
        time.sleep(0.1)
        assert s3.keys(prefix) == []


def test_release_of_a_store_that_does_not_answer_ends_in_time(
    s3: S3Server, prefix: str, make: Make, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_RELEASE_TIMEOUT_SECONDS", 0.5)
    claim = make("a", SILENT)
    claim.acquire(ProgressReporter())
    proxy.faults = [Fault("503", "GET", ".claim.json", 100), Fault("503", "HEAD", ".claim.json", 100)]
    begun = time.monotonic()
    claim.release()
    assert time.monotonic() - begun < 2
    proxy.faults = []


def test_run_that_waits_for_another_reports_so_until_it_has_the_output(make: Make) -> None:
    make("a", SILENT).acquire(ProgressReporter())
    progress, stages = ProgressReporter(), set[Stage]()
    waiting = threading.Thread(target=make("b").acquire, args=(progress,))
    waiting.start()
    while waiting.is_alive():
        stages.add(progress.get_latest().stage)
        time.sleep(0.02)
    assert stages == {Stage.DOWNLOADING, Stage.WAITING_FOR_OUTPUT}
    assert progress.get_latest().stage is Stage.DOWNLOADING


def test_run_that_is_refused_does_not_end_with_the_stage_of_waiting(make: Make) -> None:
    make("a").acquire(ProgressReporter())
    progress = ProgressReporter()
    refused(lambda: make("b").acquire(progress))
    assert progress.get_latest().stage is Stage.DOWNLOADING  # an older reader would not understand the outcome


def test_another_run_takes_over_what_was_left_behind(s3: S3Server, prefix: str, make: Make) -> None:
    dead = make("a", SILENT)
    dead.acquire(ProgressReporter())
    begun = time.monotonic()
    make("b").acquire(ProgressReporter())
    assert time.monotonic() - begun >= QUICK.stale_seconds
    assert (note(s3, prefix)["runId"], note(s3, prefix)["attempt"]) == ("b", 2)
    assert "run b on" in refused(dead.check_held)  # should it come back to life
    dead.release()
    assert note(s3, prefix)["runId"] == "b"


def test_the_next_attempt_of_a_run_does_not_wait_and_the_earlier_one_hears_of_it(make: Make) -> None:
    first, second = make("a"), make("a", SILENT)
    first.acquire(ProgressReporter())
    begun = time.monotonic()
    second.acquire(ProgressReporter())
    assert time.monotonic() - begun < QUICK.stale_seconds
    time.sleep(0.8)
    assert "another attempt of this run" in refused(first.check_not_lost)  # by its own heartbeat
    second.check_held()


def test_of_24_runs_at_once_one_gets_it(s3: S3Server, prefix: str, make: Make) -> None:
    start = threading.Barrier(24)

    def attempt(number: int) -> Reason | None:
        start.wait()
        try:
            make(f"run-{number}", PATIENT).acquire(ProgressReporter())
        except TrainerError as error:
            return error.reason
        return None

    with ThreadPoolExecutor(24) as pool:
        ends = list(pool.map(attempt, range(24)))
    assert ends.count(None) == 1
    assert ends.count(Reason.OUTPUT_BUSY) == 23
    assert note(s3, prefix)["runId"] == f"run-{ends.index(None)}"


def test_a_claim_that_somebody_deleted_is_written_again(s3: S3Server, prefix: str, make: Make) -> None:
    claim = make("a")
    claim.acquire(ProgressReporter())
    s3.client.delete_object(Bucket="results", Key=prefix.removeprefix("s3://results/") + ".claim.json")
    time.sleep(0.8)
    assert note(s3, prefix)["runId"] == "a"
    claim.check_held()


@pytest.mark.parametrize("content", [b"", b"no json", b'{"runId": 7}'])
def test_a_note_that_cannot_be_read_counts_as_left_behind(
    s3: S3Server, prefix: str, make: Make, content: bytes
) -> None:
    s3.put(prefix + ".claim.json", content)
    make("b").acquire(ProgressReporter())
    assert note(s3, prefix)["runId"] == "b"


def test_a_store_without_conditional_writes_is_used_and_the_log_says_so(
    s3: S3Server, prefix: str, make: Make, proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.unconditional = True
    claim = make("a")
    claim.acquire(ProgressReporter())
    assert "no conditional writes" in caplog.text
    time.sleep(0.5)
    claim.check_held()
    assert "is at work" in refused(lambda: make("b").acquire(ProgressReporter()))


@pytest.mark.parametrize("kind", ["503", "500", "409", "412", "reset", "delay", "late"])
def test_a_claim_is_taken_and_kept_whatever_the_store_answers_first(
    s3: S3Server, prefix: str, make: Make, proxy: FaultyProxy, kind: str
) -> None:
    proxy.faults = [Fault(kind, "PUT", ".claim.json")]
    claim = make("a")
    claim.acquire(ProgressReporter())
    proxy.faults = [Fault(kind, "PUT", ".claim.json")]  # and for a sign of life
    time.sleep(3)
    claim.check_held()
    assert proxy.faults[0].times == 0
    assert note(s3, prefix)["runId"] == "a"
