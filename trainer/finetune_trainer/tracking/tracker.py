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

_LATE = "it did not answer in time"
_SHOWN = 300
"""Characters of a server's answer that are told."""


class Refused(Exception):
    """A tracker's server or library does not do what it is asked."""


@contextmanager
def refusals() -> Iterator[None]:
    """Turns whatever a tracker's library raises into `Refused`: they raise more types than they say."""
    try:
        yield
    except Exception as error:
        raise Refused(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """What the network said, which libraries wrap into several lines of their own; or what the server did."""
    inner: BaseException | None = error
    while inner:
        if isinstance(inner, TimeoutError):
            return _LATE
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error) or type(error).__name__


class Status(StrEnum):
    """How an attempt ended."""

    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"  # another attempt follows


@dataclass(frozen=True)
class Point:
    """Some metrics after so many optimizer steps; `time` is in seconds since 1970."""

    step: int
    metrics: Mapping[str, float]
    time: float = field(default_factory=time.time)


@dataclass(frozen=True)
class End:
    """The last word: how it ended, and what is known of the result, measured after its last step."""

    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """A tracker's server. Each call may raise `Refused` and is then repeated."""

    @property
    def where(self) -> str:
        """What to call it in messages."""

    def open(self) -> str:
        """Find or make this run's record there. Returns where people can see it."""

    def send(self, points: Sequence[Point]) -> None:
        """Store some metrics."""

    def end(self, end: End) -> None:
        """Close the record."""


@dataclass(frozen=True)
class Timing:
    """Seconds: in which points are gathered into one request, after which a failed request is repeated, and that the
    end of a run may wait for the server."""

    gather: float = 1
    retry: float = 15
    last: float = 10
    stopping: float = 2


@dataclass
class Tracker:
    """One run's, from its start to its end."""

    sink: Sink
    timing: Timing = field(default_factory=Timing)
    room: int = 10_000
    """Points that may wait."""

    def __post_init__(self) -> None:
        self._queue: queue.Queue[Point] = queue.Queue(self.room)
        self._given = self._sent = 0
        self._trouble = ""
        self._end: End | None = None
        self._over, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        """Connect in the background."""
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take note of numbers; those that are none are left out. Never waits."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if not finite:
            return
        self._given += 1
        try:
            self._queue.put_nowait(Point(step, finite))
        except queue.Full:
            return  # counted as given and never as sent

    def close(self, end: End) -> str | None:
        """Wait for what is still on its way, for some seconds at most. Returns what was lost, if anything was."""
        if self._end is None and self._thread.ident is not None:
            self._end = end
            self._over.set()
            hurried = end.status is Status.STOPPED or self._trouble  # a server that failed before gets one more try
            self._thread.join(self.timing.stopping if hurried else self.timing.last)
            self._given_up.set()
        return self._lost()

    def _lost(self) -> str | None:
        lost, hangs = self._given - self._sent, self._thread.is_alive()
        if not (lost or hangs or self._trouble):
            return None
        what = f"{lost} of {self._given} points were lost" if lost else "the end of the run is not noted there"
        why = self._trouble or (_LATE if hangs else "there was no room for them")
        message = f"tracking: {what}: {self.sink.where}: {why}"
        log.warning("%s", message)
        return message

    def _work(self) -> None:
        if not self._persist(self._open):
            return
        while not self._given_up.is_set():
            over = self._over.wait(self.timing.gather)
            points = self._waiting()
            if points and not self._persist(partial(self.sink.send, points)):
                return
            self._sent += len(points)
            if over and self._queue.empty() and self._end:
                self._persist(partial(self.sink.end, self._end))
                return

    def _open(self) -> None:
        log.info("tracking: %s", self.sink.open())

    def _waiting(self) -> list[Point]:
        points: list[Point] = []
        while len(points) < self.room:
            try:
                points.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return points

    def _persist(self, action: Callable[[], None]) -> bool:
        """Do it, again and again if need be, and once more when the run is over. False if it never succeeds."""
        last = False
        while not last and not self._given_up.is_set():
            last = self._over.is_set()
            try:
                action()
            except Refused as error:
                self._note(str(error))
            else:
                self._trouble = ""
                return True
            self._over.wait(self.timing.retry)
        return False

    def _note(self, said: str) -> None:
        first, self._trouble = not self._trouble, " ".join(said.split())[:_SHOWN]
        if first:
            log.warning("tracking: %s: %s; the run goes on, and it is tried again", self.sink.where, self._trouble)
