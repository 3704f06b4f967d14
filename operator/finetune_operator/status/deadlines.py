"""When something is due that no event will tell. Pure; times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus, ObservedProgress
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.event import find_newest_warning, get_event_time
from finetune_operator.observed.objects import ReasonMessage, is_being_deleted, is_finished, parse_timestamp
from finetune_operator.observed.pod import (
    find_newest_pod,
    get_finished_at,
    get_started_at,
    is_alive,
    is_scheduled,
    is_trainer_running,
    list_rank_zero_pods,
)
from finetune_operator.observed.state import ObservedState
from finetune_trainer.contract import Progress, Stage

STARTUP_GRACE_SECONDS = 5.0
"""Seconds after which events are asked why nothing happens; a pod that waits for a Secret says so nowhere else."""
BACKOFF_GRACE_SECONDS = 30.0
"""The same after an attempt has ended, for a Job waits some time before the next."""
_NODE_LOST_GRACE_SECONDS = 60.0  # seconds after its grace period, in which a living kubelet would have ended the pod


def requeue_after(observed: ObservedState, status: FineTuneJobStatus, now: str) -> float | None:
    """Seconds until the next of all that may be due."""
    last_pod = find_newest_pod(list_rank_zero_pods(observed.pods))
    due_times = [compute_node_lost_deadline(pod) for pod in (*observed.orphaned_pods, *observed.pods)]
    if observed.job:
        due_times.append(
            compute_startup_deadline(observed.run_policy, observed.job, status.last_attempt_time, observed.pods)
        )
    if last_pod and is_trainer_running(last_pod):
        due_times.append(
            compute_stall_deadline(observed.run_policy, status.progress, status.last_attempt_time, observed.progress)
        )
    delays = [seconds_until(due, now) for due in due_times if due and not has_passed(due, now)]
    if startup_delay := find_startup_delay(observed.job, observed.pods):
        delays.append(startup_delay.requeue_after(now))
    if observed.blocked or _is_queued(observed.job):
        delays.append(_compute_backoff(_get_waited_seconds(status, now)))
    return min((delay for delay in delays if delay), default=None)


class StartupDelay(NamedTuple):
    """What does not start."""

    involved_object: Body
    """The object whose events say why."""
    since: float
    """When it began to be waited for."""
    grace_seconds: float
    """Seconds that are nothing unusual."""

    def is_overdue(self, now: str) -> bool:
        """Whether to ask."""
        return self._get_waited_seconds(now) >= self.grace_seconds

    def requeue_after(self, now: str) -> float:
        """Seconds until the next time to ask."""
        waited_seconds = self._get_waited_seconds(now)
        return (
            _compute_backoff(waited_seconds)
            if waited_seconds >= self.grace_seconds
            else max(1.0, self.grace_seconds - waited_seconds)
        )

    def find_warning(self, events: Iterable[Body]) -> ReasonMessage | None:
        """The last warning since then."""
        return find_newest_warning(
            event for event in events if (parse_timestamp(get_event_time(event)) or 0.0) >= self.since
        )

    def _get_waited_seconds(self, now: str) -> float:
        return (parse_timestamp(now) or 0.0) - self.since


def find_startup_delay(job: Body | None, pods: Iterable[Body]) -> StartupDelay | None:
    """A pod on a node that does not start, or a Job without a pod, or without the next one."""
    if job is None or is_finished(job) or is_being_deleted(job) or _is_queued(job):
        return None
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    if last_pod is None:
        return StartupDelay(job, _get_created_at(job), STARTUP_GRACE_SECONDS)
    if not is_alive(last_pod):
        return StartupDelay(
            job, parse_timestamp(get_finished_at(last_pod)) or _get_created_at(last_pod), BACKOFF_GRACE_SECONDS
        )
    is_pending = is_scheduled(last_pod) and not is_trainer_running(last_pod)
    return StartupDelay(last_pod, _get_created_at(last_pod), STARTUP_GRACE_SECONDS) if is_pending else None


def _get_created_at(body: Body) -> float:
    return parse_timestamp(body["metadata"]["creationTimestamp"]) or 0.0


def seconds_until(due_time: float | None, now: str) -> float | None:
    """Seconds until that moment; at least one, so that it has come by then."""
    return None if due_time is None else max(1.0, due_time - (parse_timestamp(now) or 0.0) + 0.5)


def _is_queued(job: Body | None) -> bool:
    return bool(job and job["spec"].get("suspend"))


def _get_waited_seconds(status: FineTuneJobStatus, now: str) -> float:
    """Seconds since the run last stopped or was found not to start."""
    since = min(
        (parse_timestamp(condition.last_transition_time) or 0.0 for condition in status.conditions), default=0.0
    )
    return (parse_timestamp(now) or 0.0) - since


def _compute_backoff(waited_seconds: float) -> float:
    """When to look again at something that waits: the longer it has waited, the later."""
    return min(600.0, max(5.0, waited_seconds / 4))


def has_passed(due_time: float | None, now: str) -> bool:
    """Whether that moment has come."""
    return due_time is not None and due_time <= (parse_timestamp(now) or 0.0)


def compute_startup_deadline(
    run_policy: RunPolicy, job: Body, last_attempt_time: str | None, pods: Iterable[Body]
) -> float | None:
    """When a trainer must have started. The Job's start moves when a queue lets it go on."""
    job_start = parse_timestamp(job.get("status", {}).get("startTime"))
    if run_policy.startup_deadline_seconds is None or job_start is None or job["spec"].get("suspend"):
        return None
    # By its node's clock a pod may have started before its Job; when it was created tells of which start it is.
    has_started = any(get_started_at(pod) and _get_created_at(pod) >= job_start - STARTUP_GRACE_SECONDS for pod in pods)
    return (
        None
        if has_started or (parse_timestamp(last_attempt_time) or 0.0) >= job_start
        else job_start + run_policy.startup_deadline_seconds
    )


def compute_node_lost_deadline(pod: Body) -> float | None:
    """When a pod that has to end is late. Its `deletionTimestamp` is the end of its grace period."""
    grace_period_end = parse_timestamp(pod["metadata"].get("deletionTimestamp"))
    return grace_period_end + _NODE_LOST_GRACE_SECONDS if grace_period_end and is_alive(pod) else None


def compute_stall_deadline(
    run_policy: RunPolicy, progress: ObservedProgress | None, last_attempt_time: str | None, reported: Progress | None
) -> float | None:
    """When a trainer that answers has stood still for half of the time after which it ends itself.

    A trainer that waits for its output does not end itself for that.
    """
    if reported and reported.stage is Stage.WAITING_FOR_OUTPUT:
        return None
    last_change = max(
        parse_timestamp(progress.last_update_time) or 0.0 if progress else 0.0,
        parse_timestamp(last_attempt_time) or 0.0,
    )
    return last_change + run_policy.stall_seconds / 2 if reported and last_change else None


def compute_ttl_expiry(run_policy: RunPolicy, status: FineTuneJobStatus) -> float | None:
    """When a finished FineTuneJob is deleted."""
    completion_time = parse_timestamp(status.completion_time)
    return (
        completion_time + run_policy.ttl_seconds_after_finished
        if completion_time and run_policy.ttl_seconds_after_finished is not None
        else None
    )


def compute_active_deadline_seconds(
    run_policy: RunPolicy, job: Body, pods: list[Body], status: FineTuneJobStatus
) -> int | None:
    """The Job's own `activeDeadlineSeconds` while a trainer runs, so that it is kept while no operator is there.

    The Job counts from its start, also while its pod waits; a trainer's running time is what is limited here.
    """
    job_start = parse_timestamp(job.get("status", {}).get("startTime"))
    running_starts = [
        start for pod in pods if is_trainer_running(pod) and (start := parse_timestamp(get_started_at(pod)))
    ]
    if run_policy.active_deadline_seconds is None or job_start is None or not running_starts:
        return None
    accounted_seconds = max(
        0.0, (parse_timestamp(status.accounted_time) or 0.0) - min(running_starts)
    )  # of this attempt, in activeSeconds
    remaining_seconds = run_policy.active_deadline_seconds - ((status.active_seconds or 0) - accounted_seconds)
    return max(1, round(min(running_starts) - job_start + remaining_seconds))
