"""One line about a run, whether its FineTuneJob exists or only its result in S3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finetune_operator.api import Condition, ConditionType, FineTuneJob, FineTuneJobStatus, ObservedProgress, Phase
from finetune_operator.api.labels import SCHEDULE_LABEL, SWEEP_LABEL
from finetune_trainer.records.manifest import REPORT_NAME
from finetune_trainer.telemetry.run_log import LOG_NAME

if TYPE_CHECKING:
    from finetune_operator.client.results import StoredResult

_HEADLINE_TYPES = (ConditionType.COMPLETE, ConditionType.FAILED, ConditionType.CANCELLED, ConditionType.SUSPENDED)


@dataclass(frozen=True)
class RunSummary:
    """What lists and pages show of a run. Its text may be hostile: escape it where it is shown."""

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
    reward: float | None = None
    """Mean reward of the answers of the last step, with methods that generate answers, whose loss says nothing."""
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
    status = job.status or FineTuneJobStatus()
    result, progress = status.result, status.progress
    headline = find_headline(status)
    return RunSummary(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        source="cluster",
        phase=get_phase(job),
        reason=status.reason or (headline.reason if headline else ""),
        message=headline.message if headline else "",
        model_uri=job.spec.model.uri,
        method=job.spec.training.method,
        duration=status.duration or "",
        created_time=job.metadata.creation_timestamp or "",
        completion_time=status.completion_time or "",
        owner=job.metadata.labels.get(SCHEDULE_LABEL) or job.metadata.labels.get(SWEEP_LABEL) or "",
        adapter_uri=result.adapter_uri if result else "",
        report_uri=(result.report_uri or "") if result else "",
        log_uri=status.log_uri or "",
        metrics=dict(result.metrics) if result else {},
        **_summarize_progress(progress),
    )


def _summarize_progress(progress: ObservedProgress | None) -> dict[str, Any]:
    if progress is None:
        return {}
    return {
        "completed": progress.completed or "",
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.loss,
        "eval_loss": progress.eval_loss,
        "reward": progress.reward,
        "remaining": progress.estimated_remaining or "",
    }


def get_phase(job: FineTuneJob) -> str:
    """Return the phase of a run. It is `Pending` before the operator has seen the run."""
    phase = job.status.phase if job.status else None
    return (phase or Phase.PENDING).value


def find_headline(status: FineTuneJobStatus) -> Condition | None:
    """Return the condition with the message: the terminal one, `Suspended`, or else `Running`."""
    conditions = {condition.type: condition for condition in status.conditions}
    for condition_type in _HEADLINE_TYPES:
        if condition_type in conditions and conditions[condition_type].status == "True":
            return conditions[condition_type]
    return conditions.get(ConditionType.RUNNING)


def summarize_result(result: StoredResult) -> RunSummary:
    """Return the summary of a published result."""
    manifest = result.manifest
    namespace, _, name = manifest.job.rpartition("/")
    training = manifest.config.get("training")
    files = {REPORT_NAME: "", LOG_NAME: ""}
    for published in files:
        if manifest.find_file(published):
            files[published] = f"{result.uri}/{published}"
    return RunSummary(
        name=name or result.uri.rpartition("/")[2],
        namespace=namespace,
        source="store",
        phase=Phase.COMPLETE.value,
        model_uri=manifest.model.uri,
        method=str(training.get("method", "sft")) if isinstance(training, dict) else "",
        completed="100%",
        loss=manifest.metrics.get("trainLoss"),
        eval_loss=manifest.metrics.get("evalLoss"),
        completion_time=manifest.created_at,
        adapter_uri=result.uri,
        report_uri=files[REPORT_NAME],
        log_uri=files[LOG_NAME],
        metrics=dict(manifest.metrics),
    )
