"""Graceful shutdown: after SIGTERM a training saves a checkpoint within the grace period, then the process ends."""

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
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.watchdog import abort

_DEFAULT_GRACE_SECONDS = "100"
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulShutdown:
    """Defers SIGTERM and SIGINT until a checkpoint is stored or the grace period is over."""

    def __init__(self, recorder: OutcomeRecorder, extra_seconds: float) -> None:
        self._recorder = recorder
        self._extra_seconds = extra_seconds
        self._is_broadcast = False
        self._signal_number: int | None = None
        self._grace_timer: threading.Timer | None = None
        self._previous_handlers = {
            signal_number: signal.signal(signal_number, self._handle_signal) for signal_number in _STOP_SIGNALS
        }

    @property
    def requested(self) -> bool:
        """Whether a stop signal was received: save a checkpoint and stop after this step."""
        return self._signal_number is not None

    @property
    def agreed_by_all(self) -> bool:
        """Whether all ranks know about the stop. A rank that stopped alone would leave the others waiting."""
        return self.requested and (topology.world_size() == 1 or self._is_broadcast)

    def broadcast(self) -> None:
        """Request the stop of this rank because another rank received a signal."""
        self._is_broadcast = True
        self._handle_signal(signal.SIGTERM, None)

    def deliver(self) -> None:
        """Restore the previous signal handlers and raise the deferred signal, if any."""
        previous_handlers, self._previous_handlers = self._previous_handlers, {}
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)
        if self._grace_timer:
            self._grace_timer.cancel()
        if previous_handlers and self._signal_number is not None:
            signal.raise_signal(self._signal_number)

    def _handle_signal(self, signal_number: int, _: FrameType | None) -> None:
        """Start the grace period. A second signal changes nothing: the period counts from the first."""
        if self.requested:
            return
        self._signal_number = signal_number
        grace_seconds = float(os.environ.get(STOP_SECONDS_ENV, _DEFAULT_GRACE_SECONDS)) + self._extra_seconds
        self._grace_timer = threading.Timer(grace_seconds, self._abort_after_grace, [grace_seconds])
        self._grace_timer.daemon = True
        self._grace_timer.start()

    def _abort_after_grace(self, grace_seconds: float) -> None:
        message = (
            f"no checkpoint could be saved within {grace_seconds:.0f} s of SIGTERM; the next attempt resumes from the "
            "previous one, if there is one"
        )
        abort(
            self._recorder,
            termination_message.build_outcome(Reason.PREEMPTED, message),
        )


@contextmanager
def ignore_stop_signals() -> Iterator[None]:
    """Ignore stop signals in the block, while a process that ends anyway reports why. Needs the main thread."""
    handlers = {signal_number: signal.signal(signal_number, signal.SIG_IGN) for signal_number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for signal_number, handler in handlers.items():
            signal.signal(signal_number, handler)


@contextmanager
def defer_signals(recorder: OutcomeRecorder, extra_seconds: float = 0) -> Iterator[GracefulShutdown]:
    """Defer stop signals in the block. They take effect at its end, or when the grace period is over.

    The grace period is that of the pod (`FINETUNE_STOP_SECONDS`) plus `extra_seconds`.
    """
    shutdown = GracefulShutdown(recorder, extra_seconds)
    try:
        yield shutdown
    finally:
        shutdown.deliver()
