"""Counters and histograms of the operator. Gauges are computed at each scrape, in the `gauges` modules of `controller`.

Each replica counts only its own work since its start. Only the leader reconciles.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` series, which nothing here uses
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
Info("finetune_operator_build", "Version of the operator.", registry=REGISTRY).info(
    {"version": version("finetune-operator")}
)

_SHORT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_BUCKETS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 172800, 604800)

ATTEMPTS = Counter(
    "finetune_job_attempts", "Trainer starts, including retries and restarts.", ["namespace"], registry=REGISTRY
)
INTERRUPTIONS = Counter(
    "finetune_job_interruptions",
    "Attempts that were evicted, preempted or lost before they saved a new checkpoint.",
    ["namespace"],
    registry=REGISTRY,
)
GPU_SECONDS = Counter(
    "finetune_job_gpu_seconds", "Seconds that trainers ran, multiplied by their GPUs.", ["namespace"], registry=REGISTRY
)
JOBS_FINISHED = Counter(
    "finetune_jobs_finished", "Finished FineTuneJobs.", ["namespace", "phase", "reason"], registry=REGISTRY
)
MODEL_CACHE_RESULTS = Counter(
    "finetune_job_model_cache_results",
    "Finished FineTuneJobs with a model cache, by where their base model came from: Hit, Filled or Miss.",
    ["namespace", "result"],
    registry=REGISTRY,
)
JOB_QUEUE_SECONDS = Histogram(
    "finetune_job_queue_duration_seconds",
    "Seconds from the creation of a FineTuneJob to the start of its first trainer.",
    buckets=_LONG_BUCKETS,
    registry=REGISTRY,
)
JOB_RUN_SECONDS = Histogram(
    "finetune_job_run_duration_seconds",
    "Seconds that the trainers of a finished FineTuneJob ran, in all attempts together.",
    ["phase"],
    buckets=_LONG_BUCKETS,
    registry=REGISTRY,
)
RECONCILES = Counter(
    "finetune_operator_reconciles",
    "Reconciliations by result: success, conflict (concurrent write), refused (API error), unanswered (timeout), "
    "deposed (not the leader), exception (unhandled error).",
    ["result"],
    registry=REGISTRY,
)
for _result in ("success", "conflict", "refused", "unanswered", "deposed", "exception"):
    RECONCILES.labels(_result)  # start at 0, because `increase` ignores the first sample of a series
RECONCILE_SECONDS = Histogram(
    "finetune_operator_reconcile_duration_seconds",
    "Seconds to reconcile an object.",
    buckets=_SHORT_BUCKETS,
    registry=REGISTRY,
)
WORK_QUEUE_SECONDS = Histogram(
    "finetune_operator_queue_wait_seconds",
    "Seconds that an object waited in the work queue.",
    buckets=_SHORT_BUCKETS,
    registry=REGISTRY,
)
API_REQUESTS = Counter(
    "finetune_operator_api_requests",
    "Requests to the API server, except watches. The code is none if there was no response.",
    ["verb", "resource", "code"],
    registry=REGISTRY,
)
API_REQUEST_SECONDS = Histogram(
    "finetune_operator_api_request_duration_seconds",
    "Seconds per request to the API server, except watches.",
    ["verb", "resource"],
    buckets=_SHORT_BUCKETS,
    registry=REGISTRY,
)
WATCH_EVENTS = Counter(
    "finetune_operator_watch_events", "Watch events received from the API server.", ["resource"], registry=REGISTRY
)

_NAMESPACE_COUNTERS = (ATTEMPTS, INTERRUPTIONS, GPU_SECONDS, JOBS_FINISHED)
_UNUSED_NAMESPACE_SECONDS = 24 * 3600.0
"""Seconds without a FineTuneJob after which the series of a namespace are removed."""
_last_used: dict[str, float] = {}
"""When a namespace last had a FineTuneJob, by the monotonic clock."""


def remove_unused_namespaces(used: Collection[str], now: float) -> None:
    """Remove the series of namespaces that had no FineTuneJob for a day, such as those of closed pull requests.

    `used` are the namespaces that have FineTuneJobs now. Without this, the number of series would only grow.
    """
    _last_used.update(dict.fromkeys(used, now))
    for counter in _NAMESPACE_COUNTERS:
        for labels in _list_labels(counter):
            if now - _last_used.setdefault(labels["namespace"], now) > _UNUSED_NAMESPACE_SECONDS:
                counter.remove_by_labels(labels)
    for namespace in [name for name, used_at in _last_used.items() if now - used_at > _UNUSED_NAMESPACE_SECONDS]:
        del _last_used[namespace]


def _list_labels(counter: Counter) -> list[dict[str, str]]:
    return [sample.labels for family in counter.collect() for sample in family.samples]
