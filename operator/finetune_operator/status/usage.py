"""What a run has used so far: attempts, interruptions, seconds of running trainers, checkpoints.

Pods are deleted, so the sums are kept in the status, each with the time up to which it counts. Pods add to a sum only
what is later than that time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import get_creation_time, parse_timestamp
from finetune_operator.observed.pod import (
    Attempt,
    find_failed_peers,
    get_attempt,
    get_finished_at,
    get_started_at,
    get_termination,
    is_alive,
    is_interrupted,
    is_termination_reported,
    list_rank_zero_pods,
)
from finetune_operator.observed.state import ObservedState
from finetune_trainer.contract import Progress, StoredCheckpoint

_UNREPORTED_PER_INTERRUPTION = 10
"""Attempts whose termination remains unreported, so that it is unknown whether they saved a checkpoint, count a tenth
of an interruption. This happens if pods or nodes disappear."""
_MAX_CLOCK_SKEW = 60.0
"""Seconds that the clock of a node may be ahead."""


class ReportedCheckpoint(NamedTuple):
    """The latest complete checkpoint in S3, or nothing if none was reported."""

    time: str | None = None
    step: int | None = None


class InterruptionStreak(NamedTuple):
    """Consecutive attempts since the last termination message that named a new checkpoint.

    Reported progress does not end a streak, because it is not durable.
    """

    interruptions: int = 0
    """Attempts that were interrupted and whose termination message names no new checkpoint."""
    unreported: int = 0
    """Attempts whose termination was never reported."""


def get_max_unreported(run_policy: RunPolicy) -> int:
    """Return the number of consecutive attempts whose termination may remain unreported."""
    return _UNREPORTED_PER_INTERRUPTION * run_policy.max_interruptions


@dataclass(frozen=True)
class AttemptCounts:
    """How often a trainer was started, and how many of the latest attempts saved no checkpoint."""

    count: int | None
    last: Attempt | None
    previous_streak: InterruptionStreak
    """The streak of the attempts before the last one."""

    @property
    def last_attempt_time(self) -> str | None:
        """When the last attempt started."""
        return self.last.start_time if self.last else None

    @property
    def last_attempt_creation_time(self) -> str | None:
        """When the pod of the last attempt was created. It is unknown if an earlier version recorded the attempt."""
        return self.last.creation_time or None if self.last else None


def find_newest_checkpoint(
    previous: FineTuneJobStatus, progress: Progress | None, recorded: Iterable[StoredCheckpoint | None], now: str
) -> ReportedCheckpoint:
    """Return the latest checkpoint that was ever reported, for display only.

    Trainers are not trusted, so checkpoints of the future are ignored. No decision depends on the result: a run whose
    progress cannot be read ends in the same way.
    """
    candidates = [ReportedCheckpoint(previous.last_checkpoint_time, previous.last_checkpoint_step)]
    candidates += [ReportedCheckpoint(progress.last_checkpoint_time, progress.last_checkpoint_step)] if progress else []
    candidates += [ReportedCheckpoint(stored.time, stored.step) for stored in recorded if stored]
    latest_time = (parse_timestamp(now) or 0.0) + _MAX_CLOCK_SKEW
    plausible = [candidate for candidate in candidates if 0 < (parse_timestamp(candidate.time) or 0.0) <= latest_time]
    # Times have a resolution of one second, in which several checkpoints may be saved.
    return max(
        plausible, key=lambda each: (parse_timestamp(each.time) or 0.0, each.step or 0), default=ReportedCheckpoint()
    )


def count_attempts(previous: FineTuneJobStatus, observed: ObservedState) -> AttemptCounts:
    """Add the attempts after the last one that `previous` counts."""
    pods = list_rank_zero_pods((*observed.orphaned_pods, *observed.pods))
    last = get_last_attempt(previous)
    streak = InterruptionStreak(previous.interruptions or 0, previous.unreported_interruptions or 0)
    attempts = sorted({attempt for pod in pods if (attempt := get_attempt(pod))})
    new_attempts = [attempt for attempt in attempts if is_later(attempt, last)]
    if last is None:
        count = max(previous.attempts or 0, len(new_attempts))
    else:
        count = (previous.attempts or 0) + len(new_attempts)
    for attempt in new_attempts:
        if last:
            streak = _advance_streak(streak, last, observed)
        last = attempt
    return AttemptCounts(count or None, last, streak)


def get_last_attempt(status: FineTuneJobStatus) -> Attempt | None:
    """Return the last attempt that the status counts, with an empty creation time if an earlier version counted it."""
    if status.last_attempt_time is None:
        return None
    return Attempt(status.last_attempt_creation_time or "", status.last_attempt_time)


def is_later(attempt: Attempt, last: Attempt | None) -> bool:
    """Return whether the attempt began after `last`, whose creation time is empty if an earlier version recorded it."""
    if last is None or last.creation_time:
        return last is None or attempt > last
    return attempt.start_time > last.start_time


def _advance_streak(streak: InterruptionStreak, last: Attempt, observed: ObservedState) -> InterruptionStreak:
    """Return the streak with the attempt `last`, which another attempt has replaced.

    An attempt of an earlier Job ends the streak: it was not interrupted, but the run was suspended or its Job deleted.
    Times have a resolution of one second, in which an earlier pod and the Job may have been created.
    """
    pod = _find_attempt_pod(last, observed.pods)
    job_creation_time = get_creation_time(observed.job) if observed.job else ""
    is_orphaned = _find_attempt_pod(last, observed.orphaned_pods) is not None
    if pod is None and ((last.creation_time or last.start_time) <= job_creation_time or is_orphaned):
        return InterruptionStreak()
    return _extend_streak(streak, pod, observed.pods)


def compute_current_streak(attempts: AttemptCounts, pods: Sequence[Body]) -> InterruptionStreak:
    """Return the streak including the last attempt, if that one has ended."""
    pod = _find_attempt_pod(attempts.last, pods) if attempts.last else None
    if pod is None or is_alive(pod):
        return attempts.previous_streak
    return _extend_streak(attempts.previous_streak, pod, pods)


def _find_attempt_pod(attempt: Attempt, pods: Iterable[Body]) -> Body | None:
    candidates = (pod for pod in list_rank_zero_pods(pods) if get_started_at(pod) == attempt.start_time)
    return next((pod for pod in candidates if attempt.creation_time in ("", get_creation_time(pod))), None)


def _extend_streak(streak: InterruptionStreak, rank_zero_pod: Body | None, pods: Sequence[Body]) -> InterruptionStreak:
    """Return the streak with an attempt that has ended. Its pod with index 0 is None if it was deleted."""
    if rank_zero_pod is None or not is_termination_reported(rank_zero_pod):
        return streak._replace(unreported=streak.unreported + 1)
    if _has_saved_checkpoint(rank_zero_pod):
        return InterruptionStreak()
    # An attempt that lost a peer was interrupted only if the peer did not fail.
    interrupted = is_interrupted(rank_zero_pod) and not find_failed_peers(rank_zero_pod, pods)
    return streak._replace(interruptions=streak.interruptions + int(interrupted))


def _has_saved_checkpoint(pod: Body) -> bool:
    """Return whether the termination message names a checkpoint of this attempt, by the clock of its node."""
    checkpoint = get_termination(pod).checkpoint
    saved_at = parse_timestamp(checkpoint.time) if checkpoint else None
    start, end = parse_timestamp(get_started_at(pod)), parse_timestamp(get_finished_at(pod))
    return saved_at is not None and start is not None and start < saved_at <= (end or start) + _MAX_CLOCK_SKEW


class ResourceUsage(NamedTuple):
    """Seconds that trainers ran, up to a point in time."""

    active_seconds: int
    gpu_seconds: int
    """The seconds of each pod, multiplied by its GPUs."""
    accounted_until: str
    """RFC 3339."""


def compute_usage(previous: FineTuneJobStatus, pods: Iterable[Body], gpus_per_node: int, now: str) -> ResourceUsage:
    """Add the seconds that trainers ran since the time that `previous` accounts for.

    Seconds in which several pods of an attempt ran count once in `active_seconds`, and for each pod in `gpu_seconds`.
    """
    accounted_since = parse_timestamp(previous.accounted_time) or 0.0
    spans = sorted(
        span for pod in pods if (span := _get_running_span(pod, accounted_since, parse_timestamp(now) or 0.0))
    )
    active_seconds, end = 0.0, accounted_since
    for start, finish in spans:
        active_seconds += max(0.0, finish - max(start, end))
        end = max(end, finish)
    gpu_seconds = sum(stop - start for start, stop in spans) * gpus_per_node
    accounted_until = max(now, previous.accounted_time or "")  # If the clock is set back, no second counts twice.
    return ResourceUsage(
        (previous.active_seconds or 0) + round(active_seconds),
        (previous.gpu_seconds or 0) + round(gpu_seconds),
        accounted_until,
    )


def _get_running_span(pod: Body, window_start: float, now: float) -> tuple[float, float] | None:
    """Return from when to when the pod's trainer ran in the window, or None if it did not run in it."""
    start, end = parse_timestamp(get_started_at(pod)), parse_timestamp(get_finished_at(pod)) or now
    if start is None or min(end, now) <= max(start, window_start):
        return None
    return max(start, window_start), min(end, now)
