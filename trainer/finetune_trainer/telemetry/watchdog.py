"""Watchdog: ends an attempt that is stalled, so that the next one can begin."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.distributed import collectives, topology
from finetune_trainer.distributed.rank_positions import RankPositions, publish_positions
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

log = logging.getLogger(__name__)

_POLLS_PER_TIMEOUT = 20
"""Readings of the activity per `training.stallSeconds`."""
_ABORT_SECONDS = 30.0
"""Time for a rank to store its log and to end after the cause of a stall is known."""


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


@dataclass(frozen=True)
class _StalledRun:
    """Ends a process whose run is stalled."""

    recorder: OutcomeRecorder
    seconds: float
    on_stall: Callable[[Outcome], None] | None

    def end(self, cause: str = "", reason: Reason = Reason.TRAINING_STALLED) -> NoReturn:
        """Log the stacks of all threads, and end the process. `cause` continues the first part of the message."""
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        stage = self.recorder.progress.get_latest().stage
        outcome = termination_message.build_outcome(
            reason,
            f"no progress for {self.seconds:.0f} s in stage {stage}{cause}; the log has the stacks of all threads. "
            "Increase training.stallSeconds if a single step takes that long",
        )
        if self.on_stall and reason is Reason.TRAINING_STALLED:
            self.on_stall(outcome)
        abort(self.recorder, outcome)

    def end_rank(self, positions: RankPositions, absent: list[int]) -> NoReturn:
        """End this rank after all ranks know which of them the others wait for.

        One attempt of all nodes counts once: as that of a rank that the others wait for, or as that of rank 0.
        """
        if topology.rank() in absent:
            time.sleep(positions.read_seconds)  # the others know the cause before this rank closes its connections
            self.end(", while other ranks wait for this one")
        ranks_text = positions.describe_ranks(absent)
        if absent:
            collectives.note_absent_ranks(ranks_text)
        time.sleep(positions.report_seconds)  # the ranks that are waited for report first
        if absent:
            self.end(f": this rank waits for {ranks_text}", Reason.PEER_LOST)
        reason = Reason.TRAINING_STALLED if topology.is_rank_zero() else Reason.PEER_LOST
        self.end(": all ranks wait in the same collective operation", reason)


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
    before the process ends. Ranks that wait for another rank end with `PEER_LOST` and name it.
    """
    finished = threading.Event()
    activity = _Activity(recorder.progress, folder, transfers)
    stalled_run = _StalledRun(recorder, seconds, on_stall)
    with publish_positions(seconds, stalled_run.end_rank) if topology.world_size() > 1 else nullcontext() as positions:
        end_stalled = partial(_end_stalled, stalled_run, positions)
        threading.Thread(
            target=_watch_activity, args=(activity, seconds, finished, end_stalled), name="stall", daemon=True
        ).start()
        try:
            yield
        finally:
            finished.set()


def _watch_activity(
    activity: _Activity, seconds: float, finished: threading.Event, end_stalled: Callable[[], None]
) -> None:
    last_reading, last_change = activity.read(), time.monotonic()
    while not finished.wait(max(seconds / _POLLS_PER_TIMEOUT, 0.1)):
        reading = activity.read()
        if reading != last_reading:
            last_reading, last_change = reading, time.monotonic()
        elif time.monotonic() - last_change >= seconds:
            end_stalled()


def _get_folder_size(folder: Path) -> int:
    # Unlike Path.rglob, os.walk skips folders that are removed meanwhile, such as the work folder at the end of a run.
    return sum(_get_file_size(os.path.join(parent, name)) for parent, _, names in os.walk(folder) for name in names)


def _get_file_size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # removed since it was listed
        return 0


def _end_stalled(stalled_run: _StalledRun, positions: RankPositions | None) -> NoReturn:
    """End the process. Several ranks find first which of them the others wait for, then each ends itself."""
    if positions is None:
        stalled_run.end()
    if positions.announce_absent_ranks():
        time.sleep(2 * positions.report_seconds + _ABORT_SECONDS)
    if collectives.is_initialized() and not topology.is_rank_zero():
        stalled_run.end(": the first node of the run does not respond", Reason.PEER_LOST)
    stalled_run.end()


def abort(recorder: OutcomeRecorder, final_outcome: Outcome) -> NoReturn:
    """Write the outcome and end the process, from any thread and even if other threads are stuck."""
    final_outcome = recorder.complete(final_outcome)
    termination_message.write_outcome(final_outcome)
    log.error("%s: %s", final_outcome.reason, final_outcome.message)
    os._exit(final_outcome.reason.exit_code)
