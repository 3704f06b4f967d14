"""Faults of a tracking server neither slow down a run nor delay its end, and lost points are reported."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from finetune_trainer.tracking.tracker import MetricPoint, RunEnd, RunEndStatus, Tracker, TrackerError, TrackerTiming

FAST_TIMING = TrackerTiming(batch_seconds=0.01, retry_seconds=0.05, close_seconds=0.5, stop_seconds=0.2)


@dataclass
class FakeBackend:
    """A fake backend that records points and simulates the faults of a server."""

    display_name: str = "somewhere"
    fails: dict[str, int] = field(default_factory=dict)
    """Number of times that each call fails before it succeeds."""
    hangs: str = ""
    """Name of the call that blocks."""
    calls: int = 0
    received: list[MetricPoint] = field(default_factory=list)
    ended: list[RunEnd] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def _call(self, name: str) -> None:
        self.calls += 1
        if self.hangs == name:
            self.released.wait(60)
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise TrackerError(f"no {name}")

    def open(self) -> str:
        self._call("open")
        return "http://somewhere/run"

    def send(self, points: Sequence[MetricPoint]) -> None:
        self._call("send")
        self.received += points

    def end(self, end: RunEnd) -> None:
        self._call("end")
        self.ended.append(end)


FINISHED = RunEnd(RunEndStatus.FINISHED, {"accuracy": 0.5}, {"digest": "sha256:1"})
SERVER_FAULTS: dict[str, tuple[FakeBackend, int, str | None]] = {
    "it takes all": (FakeBackend(), 5, None),
    "it comes up late": (FakeBackend(fails={"open": 3}), 5, None),
    "it stumbles": (FakeBackend(fails={"send": 2}), 5, None),
    "it is never there": (FakeBackend(fails={"open": 10**6}), 0, "5 of 5 points were lost: somewhere: no open"),
    "it takes no points": (FakeBackend(fails={"send": 10**6}), 0, "5 of 5 points were lost: somewhere: no send"),
    "it takes no end": (
        FakeBackend(fails={"end": 10**6}, calls=4), 5,
        "the run could not be marked as finished in the tracker: somewhere: no end",
    ),
    "it hangs at once": (
        FakeBackend(hangs="open"), 0, "5 of 5 points were lost: somewhere: it did not respond in time",
    ),
    "it hangs later": (
        FakeBackend(hangs="send"), 0, "5 of 5 points were lost: somewhere: it did not respond in time",
    ),
    "it hangs at the end": (
        FakeBackend(hangs="end"), 5,
        "the run could not be marked as finished in the tracker: somewhere: it did not respond in time",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("server", "received_count", "expected_message"), SERVER_FAULTS.values(), ids=SERVER_FAULTS)
def test_tracker_server_faults_report_lost_points(
    server: FakeBackend, received_count: int, expected_message: str | None
) -> None:
    tracker = Tracker(server, FAST_TIMING)
    tracker.start()
    for step in range(5):
        tracker.log(step, {"loss": 1.0, "learningRate": math.nan})
    wait_until(lambda: server.calls > 3 or not server.fails)
    started_at = time.monotonic()
    lost = tracker.close(FINISHED)
    assert time.monotonic() - started_at < 1.5
    assert lost == (expected_message and f"tracking: {expected_message}")
    assert [(point.step, point.metrics) for point in server.received] == [
        (step, {"loss": 1.0}) for step in range(received_count)
    ]
    assert server.ended == ([FINISHED] if expected_message is None else [])
    server.released.set()


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)


def test_tracker_full_queue_drops_points() -> None:
    server = FakeBackend(hangs="open")
    tracker = Tracker(server, FAST_TIMING, queue_size=10)
    tracker.start()
    started_at = time.monotonic()
    for step in range(10_000):
        tracker.log(step, {"loss": 1.0})
    assert time.monotonic() - started_at < 2
    server.released.set()
    assert tracker.close(FINISHED) == "tracking: 9990 of 10000 points were lost: somewhere: the queue was full"
    assert [point.step for point in server.received] == list(range(10))
    assert server.ended == [FINISHED]


def test_tracker_stopped_run_closes_quickly() -> None:
    tracker = Tracker(FakeBackend(hangs="send"), TrackerTiming(batch_seconds=0.01, close_seconds=60, stop_seconds=0.1))
    tracker.start()
    tracker.log(1, {"loss": 1.0})
    started_at = time.monotonic()
    tracker.close(RunEnd(RunEndStatus.STOPPED))
    assert time.monotonic() - started_at < 1


def test_tracker_never_started_closes_silently() -> None:
    assert Tracker(FakeBackend(), FAST_TIMING).close(RunEnd(RunEndStatus.FAILED)) is None
