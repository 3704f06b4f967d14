"""The lock on an output: one object, acquired with conditional writes and kept alive by a heartbeat.

The lock avoids double work and keeps checkpoints of different runs apart. A result is unique even without it, because
its manifest is written only once.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from pydantic import ConfigDict, ValidationError

from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, Model, Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    S3,
    ConditionalWritesUnsupported,
    Location,
    ObjectWithETag,
    create_object,
    delete_objects,
    put_bytes,
    read_with_etag,
    replace_object,
)
from finetune_trainer.storage.retry import (
    CONDITIONAL_WRITE_ATTEMPTS,
    LOCK_ATTEMPTS,
    retry_on_error,
    retry_until_true,
)
from finetune_trainer.telemetry.progress import ProgressReporter, current_timestamp

log = logging.getLogger(__name__)

LOCK_NAME = ".claim.json"
_NONEXISTENT_ETAG = '"00000000000000000000000000000000"'
_RELEASE_TIMEOUT_SECONDS = 5.0
"""Limit for the removal of the lock: a process that is stopping has little time, and the lock expires anyway."""


@dataclass(frozen=True)
class LockTiming:
    """Seconds between two heartbeats, without a heartbeat until a lock is stale, and between two polls of a lock."""

    heartbeat_seconds: float = 30
    stale_seconds: float = OUTPUT_WAIT_SECONDS
    poll_seconds: float = 5


class LockRecord(Model):
    """The content of the lock. Parsed leniently, since another version may have written it."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    config_digest: str = ""
    attempt: int = 1
    host: str = ""
    holder: str = ""
    """Unique ID of the attempt that holds the lock."""
    beat: int = 0
    heartbeat: str = ""

    def to_bytes(self) -> bytes:
        """Serialize the record as it is stored."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def parse(cls, content: bytes) -> LockRecord:
        """Parse a stored record. Invalid content counts as the lock of another run."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls(run_id="")


def remove_own_lock(s3: S3, output: Location, run_id: str, config_digest: str) -> None:
    """Remove a lock of the same run or config that was left behind, since the result is published."""
    location = output.child(LOCK_NAME)
    stored = read_with_etag(s3, location)
    record = LockRecord.parse(stored.content) if stored else None
    if record and (record.run_id == run_id or record.config_digest == config_digest):
        delete_objects(s3, [location])


class OutputLock:
    """The lock of this attempt on an output."""

    def __init__(
        self, s3: S3, output: Location, run_id: str, config_digest: str, timing: LockTiming | None = None
    ) -> None:
        self._s3 = s3
        self._location = output.child(LOCK_NAME)
        self._timing = timing or LockTiming()
        self._record = LockRecord(
            run_id=run_id, config_digest=config_digest, host=socket.gethostname(), holder=uuid.uuid4().hex
        )
        self._etag = ""
        self._has_conditional_writes = True
        self._thread = threading.Thread(target=self._run_heartbeat, name="output-lock", daemon=True)
        self._released = threading.Event()
        self._lost_message: str | None = None

    def acquire(self, progress: ProgressReporter) -> None:
        """Acquire the lock and start the heartbeat; wait first until the lock of another run is stale.

        Raises `OUTPUT_BUSY` if another run is active at this output.
        """
        if not retry_until_true(partial(self._try_acquire, progress), LOCK_ATTEMPTS):
            raise _output_busy_error(f"{self._location}: several runs try to lock this output at the same time")
        self._probe_conditional_writes()
        self.check_held()  # where writes are not quite atomic, the later of two creators has it
        self._thread.start()

    def _try_acquire(self, progress: ProgressReporter) -> bool:
        stored = read_with_etag(self._s3, self._location)
        return self._create_record() if stored is None else self._take_over_lock(stored, progress)

    def check_held(self) -> None:
        """Raise `OUTPUT_BUSY` unless the store says that this attempt holds the lock. Sends a request."""
        self.check_not_lost()
        stored = read_with_etag(self._s3, self._location)
        if stored is not None and LockRecord.parse(stored.content).holder != self._record.holder:
            self._mark_lost(stored)
        self.check_not_lost()

    def check_not_lost(self) -> None:
        """Raise `OUTPUT_BUSY` if the last heartbeat found that the lock was lost. Sends no request."""
        if self._lost_message:
            raise _output_busy_error(self._lost_message)

    def release(self) -> None:
        """Remove the lock if this attempt holds it, within `_RELEASE_TIMEOUT_SECONDS`. Never raises.

        The thread of the heartbeat removes it, because the start of another one may wait forever when no memory is
        left: https://github.com/python/cpython/issues/140746
        """
        self._released.set()
        if self._thread.is_alive():  # not if the lock was never acquired
            self._thread.join(_RELEASE_TIMEOUT_SECONDS)
        if self._thread.is_alive():
            log.info("output lock: not released, the store did not respond within %.0f s", _RELEASE_TIMEOUT_SECONDS)

    def _remove_lock(self) -> None:
        try:
            self.check_held()
            delete_objects(self._s3, [self._location])
        except TrainerError as error:
            log.info("output lock: not released, %s", error.message)

    def _create_record(self) -> bool:
        return self._write_record(lambda content: create_object(self._s3, self._location, content))

    def _take_over_lock(self, stored: ObjectWithETag, progress: ProgressReporter) -> bool:
        holder_record = LockRecord.parse(stored.content)
        if holder_record.run_id != self._record.run_id:
            with progress.report_stage(Stage.WAITING_FOR_OUTPUT):
                self._wait_until_stale(stored, holder_record)
        self._record = self._record.model_copy(update={"attempt": holder_record.attempt + 1})
        return self._write_record(lambda content: replace_object(self._s3, self._location, content, stored.etag))

    def _wait_until_stale(self, stored: ObjectWithETag, holder_record: LockRecord) -> None:
        """Wait until the lock has not changed for `stale_seconds`: clocks of different machines cannot be compared."""
        log.info(
            "output lock: another run holds %s, waiting up to %.0f s for a heartbeat",
            self._location,
            self._timing.stale_seconds,
        )
        deadline = time.monotonic() + self._timing.stale_seconds
        while time.monotonic() < deadline:
            time.sleep(self._timing.poll_seconds)
            latest = read_with_etag(self._s3, self._location)
            if latest is not None and latest.etag != stored.etag:
                message = f"{self._location}: run {holder_record.run_id} on {holder_record.host} uses this output"
                raise _output_busy_error(message + "; change output.uri, or wait until that run has ended")
            if latest is None:
                log.info(
                    "output lock: run %s on %s has released it", holder_record.run_id or "unknown", holder_record.host
                )
                return
        log.info(
            "output lock: no heartbeat of run %s on %s, taking over",
            holder_record.run_id or "unknown",
            holder_record.host,
        )

    def _write_record(self, put: Callable[[bytes], str | None]) -> bool:
        """Write the next heartbeat with `put`. Returns false if another process has written meanwhile."""
        self._record = self._record.model_copy(update={"beat": self._record.beat + 1, "heartbeat": current_timestamp()})
        content = self._record.to_bytes()
        etag = self._put_with_fallback(put, content)
        if etag is None:
            stored = read_with_etag(self._s3, self._location)
            if stored is None or stored.content != content:
                return False
            etag = stored.etag  # ours: the response to a first attempt was lost
        self._etag = etag
        return True

    def _put_with_fallback(self, put: Callable[[bytes], str | None], content: bytes) -> str | None:
        try:
            if self._has_conditional_writes:
                # If a first attempt has succeeded, the second one is rejected and the caller finds its own content.
                write = partial(put, content)
                return retry_on_error(write, TrainerError, CONDITIONAL_WRITE_ATTEMPTS, _is_unreachable)
        except ConditionalWritesUnsupported:
            self._disable_conditional_writes()
        put_bytes(self._s3, self._location, content)
        return ""

    def _probe_conditional_writes(self) -> None:
        """Try two writes that a store with conditional writes must reject."""
        if not self._has_conditional_writes:
            return
        content = self._record.to_bytes()
        try:
            accepted_etag = create_object(self._s3, self._location, content) or replace_object(
                self._s3, self._location, content, _NONEXISTENT_ETAG
            )
        except ConditionalWritesUnsupported:
            accepted_etag = "unsupported"
        if accepted_etag:
            self._disable_conditional_writes()

    def _disable_conditional_writes(self) -> None:
        self._has_conditional_writes = False
        log.warning(
            "output lock: the store does not support conditional writes; of two runs with the same output that start "
            "in the same second, the last one to publish wins"
        )

    def _run_heartbeat(self) -> None:
        while not self._released.wait(self._timing.heartbeat_seconds):
            if self._lost_message:
                return
            try:
                self._heartbeat()
            except TrainerError as error:  # the store may respond again before the lock is stale
                log.warning("output lock: heartbeat failed: %s", error.message)
        self._remove_lock()

    def _heartbeat(self) -> None:
        if not self._has_conditional_writes:
            self.check_held()
        if self._write_record(lambda content: replace_object(self._s3, self._location, content, self._etag)):
            return
        stored = read_with_etag(self._s3, self._location)
        if stored is None:  # the lock was deleted
            self._write_record(lambda content: create_object(self._s3, self._location, content))
        elif LockRecord.parse(stored.content).holder == self._record.holder:
            self._etag = stored.etag
        else:
            self._mark_lost(stored)

    def _mark_lost(self, stored: ObjectWithETag) -> None:
        holder_record = LockRecord.parse(stored.content)
        holder = (
            "another attempt of this run"
            if holder_record.run_id == self._record.run_id
            else f"run {holder_record.run_id}"
        )
        self._lost_message = f"{self._location}: {holder} on {holder_record.host} has taken over this output"


def _is_unreachable(error: TrainerError) -> bool:
    return error.reason is Reason.STORAGE_UNREACHABLE


def _output_busy_error(message: str) -> TrainerError:
    return TrainerError(Reason.OUTPUT_BUSY, message)
