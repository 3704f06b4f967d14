"""Count the status transitions of FineTuneJobs.

The counts of a run are derived from the single status patch that changes it, so their cost does not depend on the
number of FineTuneJobs. A patch whose response was lost is not counted: the status is authoritative.
"""

from __future__ import annotations

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.observed.objects import parse_timestamp
from finetune_operator.status.job_status import is_terminal
from finetune_operator.telemetry import counters


def count_status_change(meta: ObjectMeta, previous: FineTuneJobStatus, current: FineTuneJobStatus) -> None:
    """Add the difference between two statuses of a FineTuneJob to the counters."""
    namespace = meta.namespace
    counters.ATTEMPTS.labels(namespace).inc(_compute_increase(previous.attempts, current.attempts))
    counters.INTERRUPTIONS.labels(namespace).inc(_compute_increase(previous.interruptions, current.interruptions))
    counters.GPU_SECONDS.labels(namespace).inc(_compute_increase(previous.gpu_seconds, current.gpu_seconds))
    created, started = parse_timestamp(meta.creation_timestamp), parse_timestamp(current.start_time)
    if created and started and not previous.start_time:
        counters.JOB_QUEUE_SECONDS.observe(max(0.0, started - created))
    if is_terminal(current) and not is_terminal(previous) and current.phase:
        reason = next(condition.reason for condition in current.conditions if condition.type == current.phase)
        counters.JOBS_FINISHED.labels(namespace, current.phase, reason).inc()
        if current.model_cache:
            counters.MODEL_CACHE_RESULTS.labels(namespace, current.model_cache).inc()
        counters.JOB_RUN_SECONDS.labels(current.phase).observe(current.active_seconds or 0)


def _compute_increase(previous: int | None, current: int | None) -> int:
    return max(0, (current or 0) - (previous or 0))
