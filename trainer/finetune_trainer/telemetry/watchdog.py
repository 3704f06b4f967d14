"""Watchdog: ends an attempt that is stalled, so that the next one can begin."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

log = logging.getLogger(__name__)

_POLLS_PER_TIMEOUT = 20
"""Readings of the activity per `training.stallSeconds`."""


class TransferCounter(Protocol):
    """Counts bytes that are sent or received."""

    bytes_transferred: int


@dataclass(frozen=True)
class _Activity:
    """Everything whose change shows that a run is not stalled."""

    progress: ProgressReporter
    folder: Path
    transfers: TransferCounter | None

    def read(self) -> tuple[int, int, int]:
        """Return reports of progress, bytes transferred and bytes in the folder."""
        return (
            self.progress.update_count,
            self.transfers.bytes_transferred if self.transfers else 0,
            _get_folder_size(self.folder),
        )


@contextmanager
def stall_watchdog(
    recorder: OutcomeRecorder,
    folder: Path,
    seconds: float,
    transfers: TransferCounter | None = None,
    on_stall: Callable[[Outcome], None] | None = None,
) -> Iterator[None]:
    """End the process with `TRAINING_STALLED` if nothing changes for `seconds` while the block runs.

    Reports of progress, the size of the files in `folder` and bytes transferred count as changes. `on_stall` is called
    before the process ends.
    """
    finished = threading.Event()
    activity = _Activity(recorder.progress, folder, transfers)
    abort_stalled = partial(_abort_stalled, recorder, seconds, on_stall)
    threading.Thread(
        target=_watch_activity, args=(activity, seconds, finished, abort_stalled), name="stall", daemon=True
    ).start()
    try:
        yield
    finally:
        finished.set()


def _watch_activity(
    activity: _Activity, seconds: float, finished: threading.Event, abort_stalled: Callable[[], None]
) -> None:
    last_reading, last_change = activity.read(), time.monotonic()
    while not finished.wait(max(seconds / _POLLS_PER_TIMEOUT, 0.1)):
        reading = activity.read()
        if reading != last_reading:
            last_reading, last_change = reading, time.monotonic()
        elif time.monotonic() - last_change >= seconds:
            abort_stalled()


def _get_folder_size(folder: Path) -> int:
    # Unlike Path.rglob, os.walk skips folders that are removed meanwhile, such as the work folder at the end of a run.
    return sum(_get_file_size(os.path.join(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def _get_file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # removed since it was listed
        return 0


def _abort_stalled(recorder: OutcomeRecorder, seconds: float, on_stall: Callable[[Outcome], None] | None) -> NoReturn:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    stage = recorder.progress.get_latest().stage
    outcome = termination_message.build_outcome(
        Reason.TRAINING_STALLED,
        f"no progress for {seconds:.0f} s in stage {stage}; the log has the stacks of all threads. Increase "
        "training.stallSeconds if a single step takes that long",
    )
    if on_stall:
        on_stall(outcome)
    abort(recorder, outcome)


def abort(recorder: OutcomeRecorder, final_outcome: Outcome) -> NoReturn:
    """Write the outcome and end the process, from any thread and even if other threads are stuck."""
    final_outcome = recorder.complete(final_outcome)
    termination_message.write_outcome(final_outcome)
    log.error("%s: %s", final_outcome.reason, final_outcome.message)
    os._exit(final_outcome.reason.exit_code)
