"""What the operator counts while it works. What can be read off its store is computed at each scrape: `gauges`.

What a run adds is taken from the one status patch that shows it, so it costs the same however many jobs there are.
Counters start at zero with each leader; a patch whose answer was lost is not counted. The status is the truth.
"""

from __future__ import annotations

from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from finetune_operator.api import FineTuneJobStatus, Metadata
from finetune_operator.status.job_status import is_terminal
from finetune_operator.status.usage import moment

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody reads
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
Info("finetune_operator_build", "The version that runs.", registry=REGISTRY).info(
    {"version": version("finetune-operator")}
)

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 172800, 604800)

ATTEMPTS = Counter(
    "finetune_job_attempts", "Trainers started, first ones and others.", ["namespace"], registry=REGISTRY
)
INTERRUPTIONS = Counter(
    "finetune_job_interruptions",
    "Attempts that were evicted, preempted or lost before they had saved a newer checkpoint.",
    ["namespace"],
    registry=REGISTRY,
)
GPU_SECONDS = Counter(
    "finetune_job_gpu_seconds", "Seconds that trainers ran, times the GPUs held.", ["namespace"], registry=REGISTRY
)
FINISHED = Counter(
    "finetune_jobs_finished", "FineTuneJobs that ended.", ["namespace", "phase", "reason"], registry=REGISTRY
)
WAITED = Histogram(
    "finetune_job_queue_duration_seconds",
    "From the creation of a FineTuneJob to the start of its first trainer.",
    buckets=_LONG,
    registry=REGISTRY,
)
RAN = Histogram(
    "finetune_job_run_duration_seconds",
    "Seconds that the trainers of an ended FineTuneJob ran, all attempts together.",
    ["phase"],
    buckets=_LONG,
    registry=REGISTRY,
)
RECONCILES = Counter(
    "finetune_operator_reconciles",
    "FineTuneJobs looked at: success, conflict (somebody else wrote), refused or unanswered (by the API server), "
    "deposed (another leads), exception (a bug).",
    ["result"],
    registry=REGISTRY,
)
for _result in ("success", "conflict", "refused", "unanswered", "deposed", "exception"):
    RECONCILES.labels(_result)  # at 0, for `increase` does not see a series begin
RECONCILE_SECONDS = Histogram(
    "finetune_operator_reconcile_duration_seconds",
    "Time for one look at one FineTuneJob.",
    buckets=_FAST,
    registry=REGISTRY,
)
QUEUE_SECONDS = Histogram(
    "finetune_operator_queue_wait_seconds",
    "Time that a FineTuneJob waited for a worker of the operator.",
    buckets=_FAST,
    registry=REGISTRY,
)
API_REQUESTS = Counter(
    "finetune_operator_api_requests",
    "Requests of the API server, without watches; the code is none if there was no answer.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_SECONDS = Histogram(
    "finetune_operator_api_request_duration_seconds",
    "Time for one request of the API server, without watches.",
    ["verb", "resource"],
    buckets=_FAST,
    registry=REGISTRY,
)
WATCH_EVENTS = Counter(
    "finetune_operator_watch_events", "Events that the watches brought.", ["resource"], registry=REGISTRY
)


def count(meta: Metadata, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
    """Count what a status says beyond the one before."""
    namespace = meta.namespace
    ATTEMPTS.labels(namespace).inc(_more(old.attempts, new.attempts))
    INTERRUPTIONS.labels(namespace).inc(_more(old.interruptions, new.interruptions))
    GPU_SECONDS.labels(namespace).inc(_more(old.gpu_seconds, new.gpu_seconds))
    created, started = moment(meta.creation_timestamp), moment(new.start_time)
    if created and started and not old.start_time:
        WAITED.observe(max(0.0, started - created))
    if is_terminal(new) and not is_terminal(old) and new.phase:
        reason = next(each.reason for each in new.conditions if each.type == new.phase)
        FINISHED.labels(namespace, new.phase, reason).inc()
        RAN.labels(new.phase).observe(new.active_seconds or 0)


def _more(old: int | None, new: int | None) -> int:
    return max(0, (new or 0) - (old or 0))
