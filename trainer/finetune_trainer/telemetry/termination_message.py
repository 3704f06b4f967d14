"""The termination message of the container: the newest checkpoint while the run is active, then the outcome.

Kubernetes keeps 4,096 bytes of it: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import (
    CHAMPION,
    METRICS_BY_METHOD,
    OUTCOME_MAX_BYTES,
    CacheResult,
    CheckpointRecord,
    DatasetReport,
    Outcome,
    Progress,
    Reason,
    Result,
    StoredCheckpoint,
)
from finetune_trainer.distributed import topology
from finetune_trainer.records.evaluation import PreflightFinding, RejectedRow
from finetune_trainer.telemetry.progress import ProgressReporter
from finetune_trainer.text import escape_invisible

log = logging.getLogger(__name__)

_ELLIPSIS = " …"
_MESSAGE_BYTE_LIMITS = (2048, 1024, 256)
_write_lock = threading.Lock()
_paths_with_outcome: set[Path | None] = set()
"""Termination messages with an outcome, which no record of a checkpoint that is stored later may replace."""


@dataclass
class RunFacts:
    """What the stages of a run have found so far."""

    backend: str | None = None
    dataset: DatasetReport | None = None
    log_uri: str | None = None
    """URI of the stored log of this attempt."""
    published: Outcome | None = None
    """The outcome of the published adapter, while its merged model is made."""
    rejected_rows: Sequence[RejectedRow] = ()
    """A few rejected rows for each reason."""
    preflight: Sequence[PreflightFinding] = ()


class OutcomeRecorder:
    """Records what is known about a run, so that every outcome reports it, also the outcome of a failure.

    The stages record; the main thread, the watchdog and the timer of a graceful shutdown complete outcomes.
    """

    def __init__(self, progress: ProgressReporter) -> None:
        self.progress = progress
        self.facts = RunFacts()

    def record_backend(self, backend: str) -> None:
        """Record which backend trains: `unsloth` or `transformers`."""
        self.facts.backend = backend

    def record_dataset(self, report: DatasetReport) -> None:
        """Record the report of the prepared dataset."""
        self.facts.dataset = report

    def record_rejected_rows(self, rows: Sequence[RejectedRow]) -> None:
        """Record examples of the rows that were dropped from the dataset."""
        self.facts.rejected_rows = rows

    def record_preflight(self, findings: Sequence[PreflightFinding]) -> None:
        """Record the results of the checks before the first step."""
        self.facts.preflight = findings

    def record_model_cache(self, result: CacheResult | None) -> None:
        """Record where the base model came from, if the run has a model cache."""
        self.progress.model_cache = result

    def record_log_uri(self, uri: str) -> None:
        """Record where the log of this attempt is stored."""
        self.facts.log_uri = uri

    def record_published(self, outcome: Outcome) -> None:
        """Record that the adapter is published. What fails from now on does not fail the run."""
        self.facts.published = outcome

    def record_rank_zero(self, outcome: Outcome) -> None:
        """Take over what rank 0 of the run reported in its outcome, in the launcher of its node."""
        if outcome.progress:
            self.progress.update(**outcome.progress.model_dump())
            self.facts.backend, self.facts.dataset = outcome.backend, outcome.dataset
            self.record_model_cache(outcome.model_cache)

    def complete(self, outcome: Outcome) -> Outcome:
        """Return the outcome with progress, and with backend, dataset report, log and cache result if it has none of
        its own."""
        return outcome.model_copy(
            update={
                "message": _truncate_utf8(escape_invisible(outcome.message), _MESSAGE_BYTE_LIMITS[0]),
                "backend": outcome.backend or self.facts.backend,
                "dataset": outcome.dataset or self.facts.dataset,
                "log_uri": outcome.log_uri or self.facts.log_uri,
                "model_cache": outcome.model_cache or self.progress.model_cache,
                "progress": _add_recorded_checkpoint(self.progress.get_latest()),
            }
        )


def build_outcome(reason: Reason, message: str) -> Outcome:
    """Build an outcome. The message is shortened to the limit of its field, and invisible characters are escaped.

    Messages may quote the data, which can contain control sequences for terminals.
    """
    return Outcome(reason=reason, message=_truncate_utf8(escape_invisible(message), _MESSAGE_BYTE_LIMITS[0]))


def to_json(outcome: Outcome) -> str:
    """Serialize an outcome to at most `OUTCOME_MAX_BYTES` of UTF-8, since Kubernetes would truncate the JSON."""
    for candidate in _shrink_outcome(outcome):
        text = candidate.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= OUTCOME_MAX_BYTES:
            return text
    raise AssertionError("an outcome with a reason and a short message fits")


def write_outcome(outcome: Outcome) -> None:
    """Write the outcome to the termination message; in a rank of a launcher, to the file that the launcher reads."""
    path = topology.outcome_path()
    with _write_lock:
        _paths_with_outcome.add(topology.termination_message_path())
        if path:
            _overwrite_in_place(path, to_json(outcome))


def record_checkpoint(progress: Progress) -> None:
    """Write the newest checkpoint to the termination message, which the kubelet also reads after a SIGKILL."""
    path, time, step = topology.termination_message_path(), progress.last_checkpoint_time, progress.last_checkpoint_step
    if path is None or time is None or step is None:
        return
    record = CheckpointRecord(checkpoint=StoredCheckpoint(time=time, step=step))
    try:
        with _write_lock:
            if path not in _paths_with_outcome:
                _overwrite_in_place(path, record.model_dump_json(by_alias=True))
    except OSError as error:  # the checkpoint itself is stored
        log.warning("checkpoint: could not write the record to %s: %s", path, error)


def _add_recorded_checkpoint(progress: Progress) -> Progress:
    """Add the checkpoint of the record if there is none: a launcher gets no outcome from a rank 0 that was killed."""
    path = topology.termination_message_path()
    if path is None or progress.last_checkpoint_time:
        return progress
    try:
        checkpoint = CheckpointRecord.model_validate_json(path.read_bytes()).checkpoint
    except (OSError, ValidationError):  # no record
        return progress
    return progress.model_copy(
        update={"last_checkpoint_time": checkpoint.time, "last_checkpoint_step": checkpoint.step}
    )


def _overwrite_in_place(path: Path, text: str) -> None:
    """Replace the content of a file in place: a termination message is a mount, so no file can be renamed to it.

    A single write, padded to the old size, leaves valid JSON even if the process is killed at any moment.
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
    """Yield smaller outcomes, at last without a result.

    What is only shown goes first, and of that what is largest and in the report too: comparisons with other baselines
    than the champion. What a schedule or a sweep decides by stays longest: the verdicts, the comparison with the
    champion, and the metrics of the validation data.
    """
    for limit in _MESSAGE_BYTE_LIMITS:
        outcome = outcome.model_copy(update={"message": _truncate_utf8(outcome.message, limit)})
        yield outcome
    reductions: list[dict[str, object]] = [{"progress": None}]
    if outcome.result and outcome.result.servable:  # the manifest has it too
        outcome = outcome.model_copy(update={"result": outcome.result.model_copy(update={"servable": None})})
        yield outcome
    reductions += [{"result": _select_champion(outcome.result)}] if outcome.result else []
    reductions += [{"dataset": None}, {"log_uri": None}]  # the URI of the log follows from that of a result
    for reduction in reductions:
        outcome = outcome.model_copy(update=reduction)
        yield outcome
    if outcome.result:
        yield from (outcome.model_copy(update={"result": result}) for result in _shrink_result(outcome.result))
    yield Outcome(reason=outcome.reason, message=outcome.message)


def _shrink_result(result: Result) -> Iterator[Result]:
    """Yield results with fewer metrics, then without URIs that follow from adapterURI."""
    reductions: tuple[dict[str, object], ...] = (
        {"metrics": _select_measures(result.metrics)},
        {"metrics": {}},
        {"report_uri": None},
        {"merged_uri": None},
        {"gguf_uri": None},
    )
    for reduction in reductions:
        result = result.model_copy(update=reduction)
        yield result


def _select_champion(result: Result) -> Result:
    """Return the result with the comparison with the champion alone."""
    champions = [baseline for baseline in result.baselines or () if baseline.name == CHAMPION]
    return result.model_copy(update={"baselines": champions or None})


def _select_measures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that a model can be chosen by: those that the base model has too, those of the
    method, and the loss of folds. The metrics of the test data choose no model."""
    compared = {name for name in metrics if f"base{name[0].upper()}{name[1:]}" in metrics}
    measures = compared.union(["crossValidationLoss"], *METRICS_BY_METHOD.values())
    return {name: value for name, value in metrics.items() if name in measures and not name.startswith("test")}


def _truncate_utf8(text: str, limit: int) -> str:
    """Truncate text to at most `limit` bytes of UTF-8, between characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS
