"""The run's last word: where it is written, and what gives way when it is too long for Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from finetune_trainer.contract import OUTCOME_MAX_BYTES, DatasetReport, Outcome, Reason
from finetune_trainer.progress import ProgressReporter
from finetune_trainer.report.text import visible
from finetune_trainer.runlog import RunLog
from finetune_trainer.tracking.tracker import Tracker
from finetune_trainer.workers import layout

_ELLIPSIS = " …"
_MESSAGE_BYTES = (2048, 1024, 256)


@dataclass
class Known:
    """What is known of a run while it goes on; a failure reports it too."""

    progress: ProgressReporter
    backend: str | None = None
    dataset: DatasetReport | None = None
    log: RunLog | None = None
    tracker: Tracker | None = None

    def track(self, step: int, metrics: Mapping[str, float]) -> None:
        """Let the tracker know, if there is one."""
        if self.tracker:
            self.tracker.log(step, metrics)

    def complete(self, outcome: Outcome) -> Outcome:
        """The outcome with what it does not say itself."""
        return outcome.model_copy(
            update={
                "message": _shortened(visible(outcome.message), _MESSAGE_BYTES[0]),
                "backend": outcome.backend or self.backend,
                "dataset": outcome.dataset or self.dataset,
                "progress": self.progress.latest(),
            }
        )


def make(reason: Reason, message: str) -> Outcome:
    """An outcome whose message fits its field, and holds nothing that a terminal or a reader of logs would obey: what
    an error says may come from the data."""
    return Outcome(reason=reason, message=_shortened(visible(message), _MESSAGE_BYTES[0]))


def to_json(outcome: Outcome) -> str:
    """At most `OUTCOME_MAX_BYTES` of UTF-8: Kubernetes cuts the rest off, and half a JSON object says nothing."""
    for candidate in _ever_shorter(outcome):
        text = candidate.model_dump_json(by_alias=True, exclude_none=True)
        if len(text.encode()) <= OUTCOME_MAX_BYTES:
            return text
    raise AssertionError("an outcome of a reason and a short message fits")


def write(outcome: Outcome) -> None:
    """To the termination message, where there is one; of a worker to its launcher."""
    path = layout.outcome_path()
    if path:
        path.write_text(to_json(outcome), encoding="utf-8")


def _ever_shorter(outcome: Outcome) -> Iterator[Outcome]:
    """First the message gives way, then numbers that also stand in the manifest, then all but the reason."""
    for limit in _MESSAGE_BYTES:
        outcome = outcome.model_copy(update={"message": _shortened(outcome.message, limit)})
        yield outcome
    if outcome.result:
        outcome = outcome.model_copy(update={"result": outcome.result.model_copy(update={"metrics": {}})})
        yield outcome
    yield outcome.model_copy(update={"progress": None, "dataset": None})
    yield Outcome(reason=outcome.reason, message=outcome.message)


def _shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8, cut between characters."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS
