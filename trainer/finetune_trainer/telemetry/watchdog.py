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
from finetune_trainer.telemetry.termination_message import Known

log = logging.getLogger(__name__)

_LOOKS = 20
"""Looks per `stallSeconds`."""


@contextmanager
def watched(known: Known, folder: Path, seconds: float, moved: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """While the block runs, end the process with `TRAINING_STALLED` if nothing moves for `seconds`.

    Progress is movement, and so are bytes in `folder`, where prepared rows and saved files go, and what `moved` counts.
    """

    def state() -> tuple[int, int, int]:
        return known.progress.updates, moved(), sum(_size(path) for path in folder.rglob("*"))

    over = threading.Event()
    threading.Thread(target=_watch, args=(known, state, seconds, over), name="stall", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(known: Known, state: Callable[[], object], seconds: float, over: threading.Event) -> None:
    seen, since = state(), time.monotonic()
    while not over.wait(max(seconds / _LOOKS, 0.1)):
        latest = state()
        if latest != seen:
            seen, since = latest, time.monotonic()
        elif time.monotonic() - since >= seconds:
            _end(known, seconds)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed meanwhile
        return 0


def _end(known: Known, seconds: float) -> NoReturn:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    stage = known.progress.latest().stage
    end_now(
        known,
        termination_message.make(
            Reason.TRAINING_STALLED,
            f"nothing moved for {seconds:.0f} s while the stage was {stage}; the log has the stacks of all threads. "
            "Raise training.stallSeconds if a single step takes so long",
        ),
    )


def end_now(known: Known, ended: Outcome) -> NoReturn:
    """Write the outcome and leave from any thread, while the others may be stuck."""
    ended = known.complete(ended)
    termination_message.write(ended)
    log.error("%s: %s", ended.reason, ended.message)
    os._exit(ended.reason.exit_code)
