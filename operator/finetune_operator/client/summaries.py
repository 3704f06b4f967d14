"""One line about a run, whether its FineTuneJob exists or only its result in S3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from finetune_operator.api import FineTuneJob

if TYPE_CHECKING:
    from finetune_operator.client.results import StoredResult


@dataclass(frozen=True)
class RunSummary:
    """What lists and pages show of a run. Text may be hostile; whoever shows it must escape it."""

    name: str
    namespace: str
    source: Literal["cluster", "store"]
    """Where the summary is from: `store` if only the result exists."""
    phase: str
    reason: str = ""
    message: str = ""
    """Message of the condition that `phase` is based on."""
    model_uri: str = ""
    method: str = ""
    completed: str = ""
    """Progress in readable form, such as `57%`."""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    remaining: str = ""
    duration: str = ""
    created_time: str = ""
    completion_time: str = ""
    owner: str = ""
    """Name of the FineTuneSchedule or FineTuneSweep that created the run."""
    adapter_uri: str = ""
    report_uri: str = ""
    log_uri: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def summarize_job(job: FineTuneJob) -> RunSummary:
    """Return the summary of a FineTuneJob."""
    raise NotImplementedError


def summarize_result(result: StoredResult) -> RunSummary:
    """Return the summary of a published result."""
    raise NotImplementedError
