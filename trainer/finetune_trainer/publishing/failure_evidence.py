"""Stores the log and the findings of a run that fails, at its output, where they outlive the pods."""

from __future__ import annotations

import faulthandler
import logging
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from finetune_trainer.contract import Outcome, Reason, TrainerConfig
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.rejections import RowsRejectedError
from finetune_trainer.errors import TrainerError
from finetune_trainer.publishing.publish import FAILED_PREFIX, REJECTED_PREFIX, OutputPrefix
from finetune_trainer.recipe import RECIPE
from finetune_trainer.records.evaluation import RejectedRow
from finetune_trainer.records.findings import FINDINGS_NAME, RunFindings
from finetune_trainer.records.manifest import get_installed_versions
from finetune_trainer.telemetry.failures import describe_failure, is_bug
from finetune_trainer.telemetry.progress import current_timestamp
from finetune_trainer.telemetry.run_log import LOG_NAME, RunLog
from finetune_trainer.telemetry.shutdown import ignore_stop_signals
from finetune_trainer.telemetry.termination_message import OutcomeRecorder

log = logging.getLogger(__name__)

_TIMEOUT_SECONDS = 20.0
"""Limit for storing: a failed run must not hold its GPUs for a store that does not respond."""
_WITHOUT_EVIDENCE = {
    Reason.PREEMPTED,  # another attempt follows
    Reason.PEER_LOST,  # another rank knows the reason
    Reason.PEERS_MISSING,
    Reason.STORAGE_UNREACHABLE,
    Reason.OUTPUT_BUSY,  # the output is that of another run
    Reason.OUTPUT_EXISTS,
    Reason.INPUTS_CHANGED,
}
_QUOTED_KINDS = [kind for kind in PII_KINDS if kind != "ipAddress"]
"""Kinds that are redacted in messages and tracebacks, which may quote rows. Addresses are those of endpoints."""


@dataclass(frozen=True)
class FailureEvidence:
    """Stores log and findings if its block ends with an exception, and records the URI of the log.

    The exception is passed on in any case. Only rank 0 may use it, before it acquires the lock on the output or while
    it holds the lock: files below `.failed/` are those of one config, and never replace those of another.
    """

    config: TrainerConfig
    output: OutputPrefix
    recorder: OutcomeRecorder
    run_log: RunLog
    _failures: SimpleQueue[tuple[Outcome, Exception | None] | None] = field(default_factory=SimpleQueue)
    _finished: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        """Start the thread that stores a failure.

        It is a thread because the requests of a store that does not respond can take minutes, and it is started now
        because this may wait forever when no memory is left: https://github.com/python/cpython/issues/140746
        """
        threading.Thread(target=self._wait_for_failure, name="failure-evidence", daemon=True).start()
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        """Store what is known, unless the block was stopped by a signal or another run uses the output."""
        if isinstance(error, Exception) and (outcome := describe_failure(error)).reason not in _WITHOUT_EVIDENCE:
            with ignore_stop_signals():
                self._store_in_time(outcome, error)
        self._failures.put(None)  # ends the thread

    def store_full(self, outcome: Outcome) -> None:
        """Store what is known about a run that has filled its scratch volume. For the watch of the volume."""
        self._store_in_time(outcome)

    def store_stalled(self, outcome: Outcome) -> None:
        """Store what is known about a run that is stalled, with the stacks of all threads. For the watchdog."""
        with suppress(OSError), self.run_log.path.open("a") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self._store_in_time(outcome)

    def _store_in_time(self, outcome: Outcome, error: Exception | None = None) -> None:
        self._failures.put((outcome, error))
        if not self._finished.wait(_TIMEOUT_SECONDS):
            log.warning("could not store the log: the store did not respond within %.0f s", _TIMEOUT_SECONDS)

    def _wait_for_failure(self) -> None:
        failure = self._failures.get()
        try:
            if failure:
                self._store(*failure)
        finally:
            self._finished.set()

    def _store(self, outcome: Outcome, error: Exception | None) -> None:
        prefix = REJECTED_PREFIX if outcome.reason is Reason.EVALUATION_GATE else FAILED_PREFIX
        try:
            contents = {
                FINDINGS_NAME: self._build_findings(outcome, error).to_bytes(),
                LOG_NAME: self.run_log.read() + _describe_end(outcome, error).encode(),
            }
            self.recorder.record_log_uri(self.output.store_evidence(prefix, contents) + LOG_NAME)
        except TrainerError as store_error:
            log.warning("could not store the log: %s", store_error.message)
        except (OSError, MemoryError) as store_error:  # the disk or the memory that the run has filled
            log.warning("could not store the log: %s", store_error)

    def _build_findings(self, outcome: Outcome, error: Exception | None) -> RunFindings:
        facts = self.recorder.facts
        counts, examples = facts.dataset.rejected if facts.dataset else {}, facts.rejected_rows
        if isinstance(error, RowsRejectedError):  # the preparation was not completed
            counts, examples = error.counts, error.examples
        return RunFindings(
            created_at=current_timestamp(),
            config_digest=self.output.digest,
            config=self.config.to_json(),
            recipe=RECIPE,
            reason=outcome.reason,
            message=_redact(outcome.message),
            stage=self.recorder.progress.get_latest().stage,
            backend=facts.backend,
            dataset=facts.dataset,
            rejected=counts,
            examples=[_redact_location(row) for row in examples],
            preflight=list(facts.preflight),
            versions=get_installed_versions(),
        )


def _describe_end(outcome: Outcome, error: Exception | None) -> str:
    """Return the lines that end the log: the traceback of a bug, the reason and the message."""
    lines = traceback.format_exception(error) if error and is_bug(error) else []
    return _redact("".join([*lines, f"{current_timestamp()} {outcome.reason}: {outcome.message}\n"]))


def _redact(text: str) -> str:
    return redact_pii(text, _QUOTED_KINDS)


def _redact_location(row: RejectedRow) -> RejectedRow:
    """Redact the location, which is a message for an invalid row. The text is redacted already."""
    return row.model_copy(update={"where": _redact(row.where)})
