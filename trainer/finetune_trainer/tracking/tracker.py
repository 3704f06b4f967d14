"""Hands numbers to a tracker's server in the background. The run only ever puts them into a queue.

What does not fit there any more, or is not taken in the end, is dropped and counted.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Protocol

log = logging.getLogger(__name__)

_TIMEOUT_MESSAGE = "it did not answer in time"
_MAX_ERROR_CHARACTERS = 300
"""Characters of a server's answer that are told."""


class TrackerError(Exception):
    """A tracker's server or library does not do what it is asked."""


@contextmanager
def translate_tracker_errors() -> Iterator[None]:
    """Turns whatever a tracker's library raises into `Refused`: they raise more types than they say."""
    try:
        yield
    except Exception as error:
        raise TrackerError(_describe_error(error)) from error


def _describe_error(error: BaseException) -> str:
    """What the network said, which libraries wrap into several lines of their own; or what the server did."""
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, TimeoutError):
            return _TIMEOUT_MESSAGE
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


class RunEndStatus(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # another attempt follows


@dataclass(frozen=True)
class MetricPoint:
    """Some metrics after so many optimizer steps; `time` is in seconds since 1970."""

    step: int
    metrics: Mapping[str, float]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class RunEnd:
    """The last word: how it ended, and what is known of the result, measured after its last step."""

    status: RunEndStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class TrackerBackend(Protocol):
    """A tracker's server. Each call may raise `Refused` and is then repeated."""

    @property
    def display_name(self) -> str:
        """What to call it in messages."""

    def open(self) -> str:
        """Find or make this run's record there. Returns where people can see it."""

    def send(self, points: Sequence[MetricPoint]) -> None:
        """Store some metrics."""

    def end(self, run_end: RunEnd) -> None:
        """Close the record."""


@dataclass(frozen=True)
class TrackerTiming:
    """Seconds: in which points are gathered into one request, after which a failed request is repeated, and that the
    end of a run may wait for the server."""

    batch_seconds: float = 1
    retry_seconds: float = 15
    close_seconds: float = 10
    stop_seconds: float = 2


@dataclass
class Tracker:
    """One run's, from its start to its end."""

    backend: TrackerBackend
    timing: TrackerTiming = field(default_factory=TrackerTiming)
    queue_size: int = 10_000
    """Points that may wait."""

    def __post_init__(self) -> None:
        self._queue: queue.Queue[MetricPoint] = queue.Queue(self.queue_size)
        self._logged_count = self._sent_count = 0
        self._last_error = ""
        self._run_end: RunEnd | None = None
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="tracking", daemon=True)

    def start(self) -> None:
        """Connect in the background."""
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of numbers; those that are none are left out. Never waits."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if not finite:
            return
        self._logged_count += 1
        try:
            self._queue.put_nowait(MetricPoint(step, finite))
        except queue.Full:
            return  # counted as given and never as sent

    def close(self, run_end: RunEnd) -> str | None:
        """Wait for what is still on its way, for some seconds at most. Returns what was lost, if anything was."""
        if self._run_end is None and self._thread.ident is not None:
            self._run_end = run_end
            self._closing.set()
            is_hurried = (
                run_end.status is RunEndStatus.STOPPED or self._last_error
            )  # a server that failed before gets one more try
            self._thread.join(self.timing.stop_seconds if is_hurried else self.timing.close_seconds)
            self._abandoned.set()
        return self._report_losses()

    def _report_losses(self) -> str | None:
        lost_count, is_hung = self._logged_count - self._sent_count, self._thread.is_alive()
        if not (lost_count or is_hung or self._last_error):
            return None
        loss = (
            f"{lost_count} of {self._logged_count} points were lost"
            if lost_count
            else "the end of the run is not noted there"
        )
        cause = self._last_error or (_TIMEOUT_MESSAGE if is_hung else "there was no room for them")
        message = f"tracking: {loss}: {self.backend.display_name}: {cause}"
        log.warning("%s", message)
        return message

    def _send_until_closed(self) -> None:
        if not self._retry_until_closed(self._open_run):
            return
        while not self._abandoned.is_set():
            is_closing = self._closing.wait(self.timing.batch_seconds)
            points = self._drain_queue()
            if points and not self._retry_until_closed(partial(self.backend.send, points)):
                return
            self._sent_count += len(points)
            if is_closing and self._queue.empty() and self._run_end:
                self._retry_until_closed(partial(self.backend.end, self._run_end))
                return

    def _open_run(self) -> None:
        log.info("tracking: %s", self.backend.open())

    def _drain_queue(self) -> list[MetricPoint]:
        points: list[MetricPoint] = []
        while len(points) < self.queue_size:
            try:
                points.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return points

    def _retry_until_closed(self, action: Callable[[], None]) -> bool:
        """Do it, again and again if need be, and once more when the run is over. False if it never succeeds."""
        is_last_attempt = False
        while not is_last_attempt and not self._abandoned.is_set():
            is_last_attempt = self._closing.is_set()
            try:
                action()
            except TrackerError as error:
                self._record_error(str(error))
            else:
                self._last_error = ""
                return True
            self._closing.wait(self.timing.retry_seconds)
        return False

    def _record_error(self, message: str) -> None:
        is_first_error, self._last_error = not self._last_error, " ".join(message.split())[:_MAX_ERROR_CHARACTERS]
        if is_first_error:
            log.warning(
                "tracking: %s: %s; the run goes on, and it is tried again", self.backend.display_name, self._last_error
            )
