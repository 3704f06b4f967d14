"""SIGTERM while training: first the state is saved, for as long as the grace lasts; then the process stops."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from finetune_trainer.contract import STOP_SECONDS_ENV, Reason
from finetune_trainer.distributed import topology
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.termination_message import Known
from finetune_trainer.telemetry.watchdog import end_now

_DEFAULT_SECONDS = "100"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether a signal came, and which."""

    def __init__(self, known: Known, spare: float) -> None:
        self._known = known
        self._spare = spare
        self._shared = False
        self._number: int | None = None
        self._timer: threading.Timer | None = None
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}

    @property
    def made(self) -> bool:
        """Whether to save and stop after this step."""
        return self._number is not None

    @property
    def agreed(self) -> bool:
        """Whether all workers know of it. One alone that acted on it would leave the others waiting."""
        return self.made and (topology.size() == 1 or self._shared)

    def share(self) -> None:
        """All workers stop, since one of them was told to."""
        self._shared = True
        self._note(signal.SIGTERM, None)

    def obey(self) -> None:
        """Give the signals back to whoever handled them before; one that came takes effect now."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
        if self._timer:
            self._timer.cancel()
        if before and self._number is not None:
            signal.raise_signal(self._number)

    def _note(self, number: int, _: FrameType | None) -> None:
        """A second signal changes nothing: the grace is counted from the first."""
        if self.made:
            return
        self._number = number
        grace = float(os.environ.get(STOP_SECONDS_ENV, _DEFAULT_SECONDS)) + self._spare
        self._timer = threading.Timer(grace, self._give_up, [grace])
        self._timer.daemon = True
        self._timer.start()

    def _give_up(self, grace: float) -> None:
        message = f"told to stop, and no checkpoint could be stored within {grace:.0f} s; the same run again goes on"
        end_now(
            self._known, termination_message.make(Reason.PREEMPTED, message + " from the one before, if there is one")
        )


@contextmanager
def deferred(known: Known, spare: float = 0) -> Iterator[StopRequest]:
    """In this block signals are noted; whatever has come by its end takes effect there, or after the grace and
    `spare` seconds more."""
    request = StopRequest(known, spare)
    try:
        yield request
    finally:
        request.obey()
