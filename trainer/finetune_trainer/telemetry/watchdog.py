"""Ends an attempt in which nothing moves any more, so that the next one can begin."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.termination_message import RunContext

log = logging.getLogger(__name__)

_POLLS_PER_TIMEOUT = 20
"""Looks per `stallSeconds`."""


@contextmanager
def stall_watchdog(
    context: RunContext, folder: Path, seconds: float, get_bytes_transferred: Callable[[], int] = lambda: 0
) -> Iterator[None]:
    """While the block runs, end the process with `TRAINING_STALLED` if nothing moves for `seconds`.

    Progress is movement, and so are bytes in `folder`, where prepared rows and saved files go, and what `moved` counts.
    """

    def get_activity() -> tuple[int, int, int]:
        return (
            context.progress.update_count,
            get_bytes_transferred(),
            sum(_get_file_size(path) for path in folder.rglob("*")),
        )

    finished = threading.Event()
    threading.Thread(
        target=_watch_activity, args=(context, get_activity, seconds, finished), name="stall", daemon=True
    ).start()
    try:
        yield
    finally:
        finished.set()


def _watch_activity(
    context: RunContext, get_activity: Callable[[], object], seconds: float, finished: threading.Event
) -> None:
    last_activity, last_change = get_activity(), time.monotonic()
    while not finished.wait(max(seconds / _POLLS_PER_TIMEOUT, 0.1)):
        activity = get_activity()
        if activity != last_activity:
            last_activity, last_change = activity, time.monotonic()
        elif time.monotonic() - last_change >= seconds:
            _abort_stalled(context, seconds)


def _get_file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def _abort_stalled(context: RunContext, seconds: float) -> NoReturn:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    stage = context.progress.get_latest().stage
    abort(
        context,
        termination_message.build_outcome(
            Reason.TRAINING_STALLED,
            f"nothing moved for {seconds:.0f} s while the stage was {stage}; the log has the stacks of all threads. "
            "Raise training.stallSeconds if a single step takes so long",
        ),
    )


def abort(context: RunContext, final_outcome: Outcome) -> NoReturn:
    """Write the outcome and leave from any thread, while the others may be stuck."""
    final_outcome = context.complete_outcome(final_outcome)
    termination_message.write_outcome(final_outcome)
    log.error("%s: %s", final_outcome.reason, final_outcome.message)
    os._exit(final_outcome.reason.exit_code)
