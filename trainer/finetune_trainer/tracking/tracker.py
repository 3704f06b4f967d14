"""Sends metrics to the server of a tracker in the background. The run only adds them to a queue.

Metrics that do not fit into the queue, or that the server has not accepted at the end, are dropped and counted.
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

_TIMEOUT_MESSAGE = "it did not respond in time"
_MAX_ERROR_CHARACTERS = 300
"""Limit of what is quoted from the response of a server."""


class TrackerError(Exception):
    """A request to the server or library of a tracker has failed."""


@contextmanager
def translate_tracker_errors() -> Iterator[None]:
    """Raise `TrackerError` for any error in the block: libraries of trackers raise more types than they document."""
    try:
        yield
    except Exception as error:
        raise TrackerError(_describe_error(error)) from error


def _describe_error(error: BaseException) -> str:
    """Return the cause of an error: the network error that libraries wrap in long messages, or that of the server."""
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
    """Metrics of an optimizer step. `time` is in seconds since 1970."""

    step: int
    metrics: Mapping[str, float]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class RunEnd:
    """The end of an attempt, with metrics and tags of the result if it was published."""

    status: RunEndStatus
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class TrackerBackend(Protocol):
    """The server of a tracker. A call that raises `TrackerError` is repeated."""

    @property
    def display_name(self) -> str:
        """Name of the server in messages."""

    def open(self) -> str:
        """Find or create the run on the server. Returns where users can see it."""

    def send(self, points: Sequence[MetricPoint]) -> None:
        """Store metrics."""

    def end(self, run_end: RunEnd) -> None:
        """Finish the run."""


@dataclass(frozen=True)
class TrackerTiming:
    """Seconds during which points are collected for one request, after which a failed request is repeated, and that a
    run waits for the server at its end, or when it is stopped or the server has failed before."""

    batch_seconds: float = 1
    retry_seconds: float = 15
    close_seconds: float = 10
    stop_seconds: float = 2


@dataclass
class Tracker:
    """Tracks one attempt of a run, in a thread of its own."""

    backend: TrackerBackend
    timing: TrackerTiming = field(default_factory=TrackerTiming)
    queue_size: int = 10_000
    """Maximum number of points in the queue."""

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
        """Add metrics to the queue, without those that are not finite. Never waits."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if not finite:
            return
        self._logged_count += 1
        try:
            self._queue.put_nowait(MetricPoint(step, finite))
        except queue.Full:
            return  # counted as logged and never as sent

    def close(self, run_end: RunEnd) -> str | None:
        """Finish the run and wait some seconds for the queue to be sent. Returns a message if points were lost."""
        if self._run_end is None and self._thread.ident is not None:
            self._run_end = run_end
            self._closing.set()
            # A server that failed before gets only one more attempt.
            is_hurried = run_end.status is RunEndStatus.STOPPED or self._last_error
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
            else "the run could not be marked as finished in the tracker"
        )
        cause = self._last_error or (_TIMEOUT_MESSAGE if is_hung else "the queue was full")
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
        """Repeat the action until it succeeds, and once more when the run ends. Returns false if it never succeeds."""
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
                "tracking: %s: %s; retrying while the run continues", self.backend.display_name, self._last_error
            )
