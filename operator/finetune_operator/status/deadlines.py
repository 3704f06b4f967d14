"""Deadlines that no event announces, and when to reconcile again because of them.

Points in time are seconds since 1970, except `now`, which is a timestamp in RFC 3339.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus, ObservedProgress
from finetune_operator.api.labels import DEFAULT_STARTUP_DEADLINE_ANNOTATION, STARTUP_DEADLINE_ANNOTATION
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.event import find_newest_warning, get_event_time
from finetune_operator.observed.job import get_job_started_at, is_job_suspended
from finetune_operator.observed.objects import (
    ReasonMessage,
    get_creation_time,
    is_being_deleted,
    is_finished,
    parse_timestamp,
)
from finetune_operator.observed.pod import (
    find_newest_pod,
    get_finished_at,
    get_grace_period_end,
    get_started_at,
    is_alive,
    is_scheduled,
    is_trainer_running,
    list_rank_zero_pods,
)
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.stops import compute_budget_deadline
from finetune_trainer.contract import Progress, Stage

STARTUP_GRACE_SECONDS = 5.0
"""Seconds that a pod may take to start before its Events are read. Only they report that it waits for a missing Secret.
"""
BACKOFF_GRACE_SECONDS = 30.0
"""Seconds that the next pod may take to appear after an attempt. The Job controller waits between two attempts."""
_NODE_LOST_GRACE_SECONDS = 60.0
"""Seconds after the grace period within which a reachable kubelet would have ended the pod."""
_MIN_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 5.0, 600.0


def requeue_after(observed: ObservedState, status: FineTuneJobStatus, now: str) -> float | None:
    """Return the seconds until the next deadline or the next check of something that waits, or None."""
    last_pod = find_newest_pod(list_rank_zero_pods(observed.pods))
    due_times = [compute_node_lost_deadline(pod) for pod in (*observed.orphaned_pods, *observed.pods)]
    if observed.job:
        last_attempt_time = status.last_attempt_creation_time or status.last_attempt_time
        due_times.append(compute_startup_deadline(observed.run_policy, observed.job, last_attempt_time, observed.pods))
    due_times.append(compute_budget_deadline(observed.run_policy, status, observed.pods, now))
    if last_pod and is_trainer_running(last_pod):
        due_times.append(
            compute_stall_deadline(observed.run_policy, status.progress, status.last_attempt_time, observed.progress)
        )
    delays = [seconds_until(due, now) for due in due_times if due and not has_passed(due, now)]
    if startup_delay := find_startup_delay(observed.job, observed.pods):
        delays.append(startup_delay.requeue_after(now))
    if observed.blocked or (observed.job and is_job_suspended(observed.job)):
        delays.append(_compute_backoff(_get_seconds_since_transition(status, now)))
    return min((delay for delay in delays if delay), default=None)


class StartupDelay(NamedTuple):
    """A pod or a Job that is expected to start something and has not yet."""

    involved_object: Body
    """The object whose Events explain the delay."""
    since: float
    """When the delay began."""
    grace_seconds: float
    """Seconds after which the delay is unusual."""

    def is_overdue(self, now: str) -> bool:
        """Return whether the delay is unusual, so that Events should be read."""
        return self._get_waited_seconds(now) >= self.grace_seconds

    def requeue_after(self, now: str) -> float:
        """Return the seconds until Events should be read the next time."""
        waited_seconds = self._get_waited_seconds(now)
        if waited_seconds >= self.grace_seconds:
            return _compute_backoff(waited_seconds)
        return max(1.0, self.grace_seconds - waited_seconds)

    def find_warning(self, events: Iterable[Body]) -> ReasonMessage | None:
        """Return the newest warning since the delay began."""
        return find_newest_warning(
            event for event in events if (parse_timestamp(get_event_time(event)) or 0.0) >= self.since
        )

    def _get_waited_seconds(self, now: str) -> float:
        return (parse_timestamp(now) or 0.0) - self.since


def find_startup_delay(job: Body | None, pods: Iterable[Body]) -> StartupDelay | None:
    """Return the delay of a scheduled pod that has not started, or of a Job whose first or next pod does not exist.

    Return None if nothing is expected to start.
    """
    if job is None or is_finished(job) or is_being_deleted(job) or is_job_suspended(job):
        return None
    last_pod = find_newest_pod(list_rank_zero_pods(pods))
    if last_pod is None:
        return StartupDelay(job, _parse_creation_time(job), STARTUP_GRACE_SECONDS)
    if not is_alive(last_pod):
        attempt_end = parse_timestamp(get_finished_at(last_pod)) or _parse_creation_time(last_pod)
        return StartupDelay(job, attempt_end, BACKOFF_GRACE_SECONDS)
    if is_scheduled(last_pod) and not is_trainer_running(last_pod):
        return StartupDelay(last_pod, _parse_creation_time(last_pod), STARTUP_GRACE_SECONDS)
    return None


def _parse_creation_time(body: Body) -> float:
    return parse_timestamp(get_creation_time(body)) or 0.0


def _get_seconds_since_transition(status: FineTuneJobStatus, now: str) -> float:
    """Return the seconds since the oldest transition of the conditions."""
    transitions = (parse_timestamp(condition.last_transition_time) or 0.0 for condition in status.conditions)
    return (parse_timestamp(now) or 0.0) - min(transitions, default=0.0)


def _compute_backoff(waited_seconds: float) -> float:
    """Return the seconds until the next check of something that waits. They grow with the time that it has waited."""
    return min(_MAX_BACKOFF_SECONDS, max(_MIN_BACKOFF_SECONDS, waited_seconds / 4))


def seconds_until(due_time: float | None, now: str) -> float | None:
    """Return the seconds until a point in time, plus a margin so that it has passed then, and at least 1."""
    return None if due_time is None else max(1.0, due_time - (parse_timestamp(now) or 0.0) + 0.5)


def has_passed(due_time: float | None, now: str) -> bool:
    """Return whether a point in time has passed."""
    return due_time is not None and due_time <= (parse_timestamp(now) or 0.0)


def compute_startup_deadline(
    run_policy: RunPolicy, job: Body, last_attempt_time: str | None, pods: Iterable[Body]
) -> float | None:
    """Return when a trainer must have started, or None if there is no deadline or a trainer has started.

    The deadline counts from the start of the Job, which changes each time that a queue resumes it. `last_attempt_time`
    is when the pod of the last attempt was created, or when its trainer started if that is unknown.
    """
    job_start, seconds = parse_timestamp(get_job_started_at(job)), get_startup_deadline_seconds(run_policy, job)
    if seconds is None or job_start is None or is_job_suspended(job):
        return None
    # The clock of a node may be behind, so a trainer may seem to have started before its Job. The time of the pod's
    # creation shows to which start of the Job the pod belongs.
    has_started = any(
        get_started_at(pod) and _parse_creation_time(pod) >= job_start - STARTUP_GRACE_SECONDS for pod in pods
    )
    if has_started or (parse_timestamp(last_attempt_time) or 0.0) >= job_start - STARTUP_GRACE_SECONDS:
        return None
    return job_start + seconds


def get_startup_deadline_seconds(run_policy: RunPolicy, job: Body) -> int | None:
    """Return the startup deadline: that of an enforced profile, of the FineTuneJob, or the default on the Job."""
    annotations = job["metadata"].get("annotations", {})
    enforced = _parse_seconds(annotations.get(STARTUP_DEADLINE_ANNOTATION))
    default = _parse_seconds(annotations.get(DEFAULT_STARTUP_DEADLINE_ANNOTATION))
    return enforced or run_policy.startup_deadline_seconds or default


def _parse_seconds(text: str | None) -> int | None:
    """Return the seconds in an annotation, or None for other texts, because users may be able to edit the Job."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None


def compute_node_lost_deadline(pod: Body) -> float | None:
    """Return when the node of a terminating pod counts as lost, or None if the pod is not terminating."""
    grace_period_end = parse_timestamp(get_grace_period_end(pod))
    return grace_period_end + _NODE_LOST_GRACE_SECONDS if grace_period_end and is_alive(pod) else None


def compute_stall_deadline(
    run_policy: RunPolicy, progress: ObservedProgress | None, last_attempt_time: str | None, reported: Progress | None
) -> float | None:
    """Return when a trainer counts as stalled: after half of the time after which it ends itself.

    Return None for a trainer that does not respond, because its progress is unknown, and for one that waits for its
    output, because it does not end itself.
    """
    if reported is None or reported.stage is Stage.WAITING_FOR_OUTPUT:
        return None
    last_update_time = parse_timestamp(progress.last_update_time) if progress else None
    last_change = max(last_update_time or 0.0, parse_timestamp(last_attempt_time) or 0.0)
    return last_change + run_policy.stall_seconds / 2 if last_change else None


def compute_ttl_expiry(run_policy: RunPolicy, status: FineTuneJobStatus) -> float | None:
    """Return when a finished FineTuneJob is deleted, or None if it is not finished or is kept."""
    completion_time = parse_timestamp(status.completion_time)
    ttl_seconds = run_policy.ttl_seconds_after_finished
    return completion_time + ttl_seconds if completion_time and ttl_seconds is not None else None


def compute_cleaning_time(status: FineTuneJobStatus, retention_seconds: int) -> float | None:
    """Return when the checkpoints of an ended run are deleted, or None if it has not ended or they are kept."""
    completion_time = parse_timestamp(status.completion_time)
    return completion_time + retention_seconds if completion_time and retention_seconds else None


def compute_active_deadline_seconds(
    run_policy: RunPolicy, job: Body, pods: list[Body], status: FineTuneJobStatus
) -> int | None:
    """Return the Job's own `activeDeadlineSeconds` while a trainer runs, so that it ends without the operator, too.

    The Job counts from its start and includes the time that its pod is pending. The limit of a FineTuneJob applies to
    the time that its trainers run, in all attempts together.
    """
    job_start = parse_timestamp(get_job_started_at(job))
    running_pods = filter(is_trainer_running, pods)
    running_starts = [start for pod in running_pods if (start := parse_timestamp(get_started_at(pod)))]
    if run_policy.active_deadline_seconds is None or job_start is None or not running_starts:
        return None
    attempt_start = min(running_starts)
    accounted_seconds = max(0.0, (parse_timestamp(status.accounted_time) or 0.0) - attempt_start)
    earlier_seconds = (status.active_seconds or 0) - accounted_seconds  # in earlier attempts
    remaining_seconds = run_policy.active_deadline_seconds - earlier_seconds
    return max(1, round(attempt_start - job_start + remaining_seconds))
