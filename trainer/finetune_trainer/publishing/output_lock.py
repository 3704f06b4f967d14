"""Who is at work on an output: one object there, taken by conditional writes and kept by a heartbeat.

A claim spares work and keeps checkpoints apart. What makes a result unique is still that its manifest is written once.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ConfigDict, ValidationError

from finetune_trainer.contract import OUTPUT_WAIT_SECONDS, RUN_ID_ENV, Model, Reason, Stage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    S3,
    Location,
    NoConditions,
    Tagged,
    create,
    put_bytes,
    read_tagged,
    remove,
    replace,
)
from finetune_trainer.telemetry.progress import ProgressReporter, now

log = logging.getLogger(__name__)

CLAIM_NAME = ".claim.json"
_NO_SUCH_ETAG = '"00000000000000000000000000000000"'
_TRIES = 5
_RELEASE_SECONDS = 5.0
"""For the removal of a claim. A process that was told to stop has little time, and the claim expires by itself."""


@dataclass(frozen=True)
class Timing:
    """Seconds: between two signs of life, without one until a claim counts as left behind, between two looks."""

    heartbeat: float = 30
    stale: float = OUTPUT_WAIT_SECONDS
    look: float = 5


class Note(Model):
    """What the claim says; read leniently, since another version may have written it."""

    model_config = ConfigDict(extra="ignore")

    run_id: str
    config_digest: str = ""
    attempt: int = 1
    host: str = ""
    holder: str = ""
    """The attempt itself; no two have the same."""
    beat: int = 0
    heartbeat: str = ""

    def to_bytes(self) -> bytes:
        """As it is stored."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def parse(cls, content: bytes) -> Note:
        """As it was stored; something else counts as a stranger's."""
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            return cls(run_id="")


def run_id() -> str:
    """The run that this attempt belongs to: the FineTuneJob's, or one of its own."""
    return os.environ.get(RUN_ID_ENV) or f"by-hand-{uuid.uuid4()}"


def clear(s3: S3, output: Location, run: str, config_digest: str) -> None:
    """Remove a claim of the same run or the same config: its result is there, so whoever left it has nothing to do."""
    where = output.below(CLAIM_NAME)
    found = read_tagged(s3, where)
    theirs = Note.parse(found.content) if found else None
    if theirs and (theirs.run_id == run or theirs.config_digest == config_digest):
        remove(s3, [where])


class Claim:
    """This attempt's claim on an output."""

    def __init__(self, s3: S3, output: Location, run: str, config_digest: str, timing: Timing | None = None) -> None:
        self._s3 = s3
        self._where = output.below(CLAIM_NAME)
        self._timing = timing or Timing()
        self._note = Note(run_id=run, config_digest=config_digest, host=socket.gethostname(), holder=uuid.uuid4().hex)
        self._etag = ""
        self._conditional = True
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._lost: str | None = None

    def take(self, progress: ProgressReporter) -> None:
        """Take it, after waiting for one that was left behind. `OUTPUT_BUSY` if another run is alive there."""
        for _ in range(_TRIES):
            found = read_tagged(self._s3, self._where)
            if self._put_first() if found is None else self._take_over(found, progress):
                self._probe()
                self.check()  # where writes are not quite atomic, the later of two creators has it
                threading.Thread(target=self._keep, name="claim", daemon=True).start()
                return
        raise _busy(f"{self._where}: several runs want this output at once")

    def check(self) -> None:
        """`OUTPUT_BUSY` unless the store still says that it is ours."""
        self.check_known()
        found = read_tagged(self._s3, self._where)
        if found is not None and Note.parse(found.content).holder != self._note.holder:
            self._lose(found)
        self.check_known()

    def check_known(self) -> None:
        """The same by what the last heartbeat found, without asking the store."""
        if self._lost:
            raise _busy(self._lost)

    def release(self) -> None:
        """Remove it if it is ours, within `_RELEASE_SECONDS`. The result does not depend on it: nothing is raised."""
        self._over.set()
        removal = threading.Thread(target=self._remove, name="claim-release", daemon=True)
        removal.start()
        removal.join(_RELEASE_SECONDS)
        if removal.is_alive():
            log.info("claim: left behind, the store did not answer within %.0f s", _RELEASE_SECONDS)

    def _remove(self) -> None:
        with self._lock:  # after the heartbeat under way; no other follows
            try:
                self.check()
                remove(self._s3, [self._where])
            except TrainerError as error:
                log.info("claim: left behind, %s", error.message)

    def _put_first(self) -> bool:
        return self._write(lambda content: create(self._s3, self._where, content))

    def _take_over(self, found: Tagged, progress: ProgressReporter) -> bool:
        theirs = Note.parse(found.content)
        if theirs.run_id != self._note.run_id:
            with progress.during(Stage.WAITING_FOR_OUTPUT):
                self._wait_until_stale(found, theirs)
        self._note = self._note.model_copy(update={"attempt": theirs.attempt + 1})
        return self._write(lambda content: replace(self._s3, self._where, content, found.etag))

    def _wait_until_stale(self, found: Tagged, theirs: Note) -> None:
        """By whether the object changes: clocks of two machines cannot be compared."""
        log.info("claim: %s is held by another run, watching it for %.0f s", self._where, self._timing.stale)
        until = time.monotonic() + self._timing.stale
        while time.monotonic() < until:
            time.sleep(self._timing.look)
            latest = read_tagged(self._s3, self._where)
            if latest is not None and latest.etag != found.etag:
                message = f"{self._where}: run {theirs.run_id} on {theirs.host} is at work on this output"
                raise _busy(message + "; give output.uri another place, or let it end")
            if latest is None:
                log.info("claim: run %s on %s has released it", theirs.run_id or "unknown", theirs.host)
                return
        log.info("claim: run %s on %s gave no sign of life, taking over", theirs.run_id or "unknown", theirs.host)

    def _write(self, put: Callable[[bytes], str | None]) -> bool:
        """Write the next sign of life with `put`; False if somebody else wrote meanwhile."""
        self._note = self._note.model_copy(update={"beat": self._note.beat + 1, "heartbeat": now()})
        content = self._note.to_bytes()
        etag = self._put(put, content)
        if etag is None:
            found = read_tagged(self._s3, self._where)
            if found is None or found.content != content:
                return False
            etag = found.etag  # ours: the answer to a first try was lost
        self._etag = etag
        return True

    def _put(self, put: Callable[[bytes], str | None], content: bytes) -> str | None:
        try:
            if self._conditional:
                return _twice(lambda: put(content))
        except NoConditions:
            self._weaken()
        put_bytes(self._s3, self._where, content)
        return ""

    def _probe(self) -> None:
        """Two writes that a store with conditional writes refuses."""
        if not self._conditional:
            return
        content = self._note.to_bytes()
        try:
            accepted = create(self._s3, self._where, content) or replace(self._s3, self._where, content, _NO_SUCH_ETAG)
        except NoConditions:
            accepted = "refused as such"
        if accepted:
            self._weaken()

    def _weaken(self) -> None:
        self._conditional = False
        log.warning(
            "claim: this store has no conditional writes; two runs with the same output that start in the same second "
            "are not told apart, and the last of them to publish wins"
        )

    def _keep(self) -> None:
        while not self._over.wait(self._timing.heartbeat):
            with self._lock:
                if self._over.is_set() or self._lost:
                    return
                try:
                    self._beat()
                except TrainerError as error:  # the store may be back before anybody takes us for dead
                    log.warning("claim: no sign of life could be given: %s", error.message)

    def _beat(self) -> None:
        if not self._conditional:
            self.check()
        if self._write(lambda content: replace(self._s3, self._where, content, self._etag)):
            return
        found = read_tagged(self._s3, self._where)
        if found is None:  # somebody tidied up
            self._write(lambda content: create(self._s3, self._where, content))
        elif Note.parse(found.content).holder == self._note.holder:
            self._etag = found.etag
        else:
            self._lose(found)

    def _lose(self, found: Tagged) -> None:
        theirs = Note.parse(found.content)
        whose = "another attempt of this run" if theirs.run_id == self._note.run_id else f"run {theirs.run_id}"
        self._lost = f"{self._where}: {whose} on {theirs.host} has taken this output over"


def _twice(put: Callable[[], str | None]) -> str | None:
    """The client never repeats a conditional write whose connection broke, since it may have been done."""
    try:
        return put()
    except TrainerError as error:
        if error.reason is not Reason.STORAGE_UNREACHABLE:
            raise
        return put()  # refused if the first was done; the caller then finds its own content there


def _busy(message: str) -> TrainerError:
    return TrainerError(Reason.OUTPUT_BUSY, message)
