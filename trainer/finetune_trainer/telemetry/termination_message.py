"""The termination message: a record of the newest checkpoint, then the outcome, shortened to what Kubernetes keeps."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import (
    OUTCOME_MAX_BYTES,
    CheckpointRecord,
    DatasetReport,
    Outcome,
    Progress,
    Reason,
    StoredCheckpoint,
)
from finetune_trainer.distributed import topology
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.text import escape_invisible

log = logging.getLogger(__name__)

_ELLIPSIS = " …"
_MESSAGE_BYTE_LIMITS = (2048, 1024, 256)
_write_lock = threading.Lock()
_paths_with_outcome: set[Path | None] = set()
"""Termination messages of runs that have ended: no record replaces the outcome while an upload still finishes."""


class OutcomeRecorder:
    """Records what is known about a run, so that every outcome reports it, also the outcome of a failure.

    The stages record; the main thread, the watchdog and the timer of a graceful shutdown complete outcomes.
    """

    def __init__(self, progress: ProgressReporter) -> None:
        self.progress = progress
        self._backend: str | None = None
        self._dataset: DatasetReport | None = None

    def record_backend(self, backend: str) -> None:
        """Record which backend trains: `unsloth` or `transformers`."""
        self._backend = backend

    def record_dataset(self, report: DatasetReport) -> None:
        """Record the report of the prepared dataset."""
        self._dataset = report

    def record_rank_zero(self, outcome: Outcome) -> None:
        """Take over what rank 0 of the run reported in its outcome, in the launcher of its node."""
        if outcome.progress:
            self.progress.update(**outcome.progress.model_dump())
            self._backend, self._dataset = outcome.backend, outcome.dataset

    def complete(self, outcome: Outcome) -> Outcome:
        """Return the outcome with progress, and with backend and dataset report if it has none of its own."""
        return outcome.model_copy(
            update={
                "message": _truncate_utf8(escape_invisible(outcome.message), _MESSAGE_BYTE_LIMITS[0]),
                "backend": outcome.backend or self._backend,
                "dataset": outcome.dataset or self._dataset,
                "progress": _add_recorded_checkpoint(self.progress.get_latest()),
            }
        )


def build_outcome(reason: Reason, message: str) -> Outcome:
    """An outcome whose message fits its field, and holds nothing that a terminal or a reader of logs would obey: what
    an error says may come from the data."""
    return Outcome(reason=reason, message=_truncate_utf8(escape_invisible(message), _MESSAGE_BYTE_LIMITS[0]))


def to_json(outcome: Outcome) -> str:
    """At most `OUTCOME_MAX_BYTES` of UTF-8: Kubernetes cuts the rest off, and half a JSON object says nothing."""
    for candidate in _shrink_outcome(outcome):
        text = candidate.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= OUTCOME_MAX_BYTES:
            return text
    raise AssertionError("an outcome of a reason and a short message fits")


def write_outcome(outcome: Outcome) -> None:
    """To the termination message, where there is one; of a worker to its launcher."""
    path = topology.outcome_path()
    with _write_lock:
        _paths_with_outcome.add(topology.termination_message_path())
        if path:
            _overwrite_in_place(path, to_json(outcome))


def record_checkpoint(progress: Progress) -> None:
    """Write the newest checkpoint to the termination message, which the kubelet reads after SIGKILL too."""
    path, time, step = topology.termination_message_path(), progress.last_checkpoint_time, progress.last_checkpoint_step
    if path is None or time is None or step is None:
        return
    record = CheckpointRecord(checkpoint=StoredCheckpoint(time=time, step=step))
    try:
        with _write_lock:
            if path not in _paths_with_outcome:
                _overwrite_in_place(path, record.model_dump_json(by_alias=True))
    except OSError as error:  # the checkpoint itself is stored
        log.warning("checkpoint: its record could not be written to %s: %s", path, error)


def _add_recorded_checkpoint(progress: Progress) -> Progress:
    """A launcher knows of its first worker's checkpoints by their record alone if that worker was killed."""
    path = topology.termination_message_path()
    if path is None or progress.last_checkpoint_time:
        return progress
    try:
        checkpoint = CheckpointRecord.model_validate_json(path.read_bytes()).checkpoint
    except (OSError, ValidationError):  # there is none
        return progress
    return progress.model_copy(
        update={"last_checkpoint_time": checkpoint.time, "last_checkpoint_step": checkpoint.step}
    )


def _overwrite_in_place(path: Path, text: str) -> None:
    """Replace a file's content in place: a termination message is a mount, which nothing can be renamed to.

    One write, padded over what was there, so that a kill at any moment leaves JSON that can be read.
    """
    content = text.encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        os.write(file, content.ljust(size))
        if size > len(content):
            os.ftruncate(file, len(content))
    finally:
        os.close(file)


def _shrink_outcome(outcome: Outcome) -> Iterator[Outcome]:
    """First the message gives way, then numbers that also stand in the manifest, then all but the reason."""
    for limit in _MESSAGE_BYTE_LIMITS:
        outcome = outcome.model_copy(update={"message": _truncate_utf8(outcome.message, limit)})
        yield outcome
    if outcome.result:
        outcome = outcome.model_copy(update={"result": outcome.result.model_copy(update={"metrics": {}})})
        yield outcome
    yield outcome.model_copy(update={"progress": None, "dataset": None})
    yield Outcome(reason=outcome.reason, message=outcome.message)


def _truncate_utf8(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut between characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS
