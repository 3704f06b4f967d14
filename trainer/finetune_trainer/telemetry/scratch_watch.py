"""Watches the scratch volume, and ends a run that fills it before the kubelet evicts its pod: an eviction takes the pod
with its log, and does not say what was written."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from finetune_trainer.contract import Outcome, Reason
from finetune_trainer.formatting import format_bytes
from finetune_trainer.storage.scratch import ScratchVolume, find_scratch_volume, suggest_size
from finetune_trainer.telemetry import termination_message
from finetune_trainer.telemetry.termination_message import OutcomeRecorder
from finetune_trainer.telemetry.watchdog import abort

log = logging.getLogger(__name__)

_WRITE_BYTES_PER_SECOND = 2 * 2**30
"""Speed of a fast disk. The volume is measured again before it can be full at this speed."""
_MIN_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.2, 5.0
"""Limits of the time between two measurements. The kubelet measures about every 10 s."""
_MAX_MEASURING_SHARE = 0.05
"""Share of the time that is spent on measurements of a volume with very many files."""


@contextmanager
def watch_scratch(
    recorder: OutcomeRecorder, folder: Path, on_full: Callable[[Outcome], None] | None = None
) -> Iterator[None]:
    """End the process with `DISK_FULL` if the volume of `folder` is nearly full while the block runs.

    Without `FINETUNE_SCRATCH_BYTES` nothing is watched. `on_full` is called before the process ends.
    """
    volume = find_scratch_volume(folder)
    if volume is None:
        yield
        return
    finished = threading.Event()
    threading.Thread(
        target=_watch_volume, args=(volume, recorder, finished, on_full), name="scratch", daemon=True
    ).start()
    try:
        yield
    finally:
        finished.set()


def _watch_volume(
    volume: ScratchVolume,
    recorder: OutcomeRecorder,
    finished: threading.Event,
    on_full: Callable[[Outcome], None] | None,
) -> None:
    wait_seconds = 0.0
    while not finished.wait(wait_seconds):
        started_at = time.monotonic()
        used_bytes = volume.measure_used()
        if used_bytes > volume.limit and not finished.is_set():
            _abort_full(volume, used_bytes, recorder, on_full)
        measuring_seconds = time.monotonic() - started_at
        seconds_until_full = (volume.limit - used_bytes) / _WRITE_BYTES_PER_SECOND
        wait_seconds = max(
            min(max(seconds_until_full, _MIN_WAIT_SECONDS), _MAX_WAIT_SECONDS), measuring_seconds / _MAX_MEASURING_SHARE
        )


def _abort_full(
    volume: ScratchVolume, used_bytes: int, recorder: OutcomeRecorder, on_full: Callable[[Outcome], None] | None
) -> NoReturn:
    """End the process. If the result is published already, it is reported, since only the merged model is missing."""
    stage = recorder.progress.get_latest().stage
    message = (
        f"the scratch volume is full in stage {stage}: {format_bytes(used_bytes)} of {format_bytes(volume.size)} in "
        f"{volume.folder} are used; set compute.scratch.size to {suggest_size(max(used_bytes, volume.size) * 5 // 4)} "
        "or more"
    )
    if published := recorder.facts.published:
        abort(recorder, published.model_copy(update={"message": f"{published.message}; {message}"}))
    outcome = termination_message.build_outcome(Reason.DISK_FULL, message)
    if on_full:
        on_full(outcome)
    abort(recorder, outcome)
