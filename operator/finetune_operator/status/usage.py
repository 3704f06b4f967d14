"""What a run has used up: attempts, interruptions, seconds, checkpoints. Pure.

Pods vanish, so sums stand in the status, each beside the time up to which it counts; a pod counts from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.objects import Body
from finetune_operator.observed.objects import parse_timestamp
from finetune_operator.observed.pod import (
    find_failed_peers,
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

MAX_INTERRUPTIONS = 3
"""Attempts that may be interrupted without a newer checkpoint, by their termination messages."""
MAX_UNREPORTED = 30
"""Attempts whose end nobody reports, so that nobody knows what they saved: pods and nodes that vanish."""
_MAX_CLOCK_SKEW = 60.0  # seconds that a node's clock may be ahead


class ReportedCheckpoint(NamedTuple):
    """The newest that is whole in the store; nothing is known of an empty one."""

    time: str | None = None
    step: int | None = None


class InterruptionStreak(NamedTuple):
    """Attempts since the last termination message that named a newer checkpoint. Progress has no part in it."""

    interruptions: int = 0
    """Those that were interrupted, and whose termination message names no newer one."""
    unreported: int = 0
    """Those whose end was never reported."""


@dataclass(frozen=True)
class AttemptCounts:
    """How often a trainer was started, and how often in vain."""

    count: int | None
    last_attempt_time: str | None
    """When the last one started."""
    previous_streak: InterruptionStreak
    """Of those before the last."""


def find_newest_checkpoint(
    previous: FineTuneJobStatus, progress: Progress | None, recorded: Iterable[StoredCheckpoint | None], now: str
) -> ReportedCheckpoint:
    """The newest that was ever spoken of, for people to see; not one of the future, for a trainer's word may be forged.

    Nothing is decided by it: a run whose progress cannot be reached ends as any other.
    """
    candidates = [ReportedCheckpoint(previous.last_checkpoint_time, previous.last_checkpoint_step)]
    candidates += [ReportedCheckpoint(progress.last_checkpoint_time, progress.last_checkpoint_step)] if progress else []
    candidates += [ReportedCheckpoint(stored.time, stored.step) for stored in recorded if stored]
    latest_time = (parse_timestamp(now) or 0.0) + _MAX_CLOCK_SKEW
    plausible = [candidate for candidate in candidates if 0 < (parse_timestamp(candidate.time) or 0.0) <= latest_time]
    # Times are whole seconds, in which there may be several.
    return max(
        plausible, key=lambda each: (parse_timestamp(each.time) or 0.0, each.step or 0), default=ReportedCheckpoint()
    )


def count_attempts(previous: FineTuneJobStatus, observed: ObservedState) -> AttemptCounts:
    """Add the pods that started after the last one that is counted."""
    pods = list_rank_zero_pods((*observed.orphaned_pods, *observed.pods))
    last_attempt_time = previous.last_attempt_time
    streak = InterruptionStreak(previous.interruptions or 0, previous.unreported_interruptions or 0)
    new_starts = sorted({start for pod in pods if (start := get_started_at(pod)) and start > (last_attempt_time or "")})
    count = (
        max(previous.attempts or 0, len(new_starts))
        if last_attempt_time is None
        else (previous.attempts or 0) + len(new_starts)
    )
    for start in new_starts:
        if last_attempt_time:
            streak = _advance_streak(streak, last_attempt_time, observed)
        last_attempt_time = start
    return AttemptCounts(count or None, last_attempt_time, streak)


def _advance_streak(streak: InterruptionStreak, last_attempt_time: str, observed: ObservedState) -> InterruptionStreak:
    """The streak when another attempt starts after the one that started at `last`.

    One of an earlier Job was not interrupted: it was suspended, or its Job was deleted by hand.
    """
    pod = _find_pod_started_at(last_attempt_time, observed.pods)
    job_created_at = observed.job["metadata"].get("creationTimestamp", "") if observed.job else ""
    if pod is None and (
        last_attempt_time < job_created_at or _find_pod_started_at(last_attempt_time, observed.orphaned_pods)
    ):
        return InterruptionStreak()
    return _extend_streak(streak, pod, observed.pods)


def compute_current_streak(attempts: AttemptCounts, pods: Sequence[Body]) -> InterruptionStreak:
    """The streak with the last attempt in it, if that has ended."""
    pod = _find_pod_started_at(attempts.last_attempt_time, pods) if attempts.last_attempt_time else None
    return (
        attempts.previous_streak
        if pod is None or is_alive(pod)
        else _extend_streak(attempts.previous_streak, pod, pods)
    )


def _find_pod_started_at(start_time: str, pods: Iterable[Body]) -> Body | None:
    return next((pod for pod in list_rank_zero_pods(pods) if get_started_at(pod) == start_time), None)


def _extend_streak(streak: InterruptionStreak, rank_zero_pod: Body | None, pods: Sequence[Body]) -> InterruptionStreak:
    """The streak after an attempt that has ended; without a leader its pod is gone."""
    if rank_zero_pod is None or not is_termination_reported(rank_zero_pod):
        return streak._replace(unreported=streak.unreported + 1)
    if _has_saved_checkpoint(rank_zero_pod):
        return InterruptionStreak()
    # One that lost a peer was not interrupted if that peer failed.
    interrupted = is_interrupted(rank_zero_pod) and not find_failed_peers(rank_zero_pod, pods)
    return streak._replace(interruptions=streak.interruptions + int(interrupted))


def _has_saved_checkpoint(pod: Body) -> bool:
    """Whether its termination message names a checkpoint of this attempt, by the clock of its own node."""
    checkpoint = get_termination(pod).checkpoint
    saved_at = parse_timestamp(checkpoint.time) if checkpoint else None
    start, end = parse_timestamp(get_started_at(pod)), parse_timestamp(get_finished_at(pod))
    return saved_at is not None and start is not None and start < saved_at <= (end or start) + _MAX_CLOCK_SKEW


class ResourceUsage(NamedTuple):
    """Seconds up to a time."""

    active_seconds: int
    gpu_seconds: int
    """Times the GPUs of each pod."""
    accounted_until: str


def compute_usage(previous: FineTuneJobStatus, pods: Iterable[Body], gpus_per_node: int, now: str) -> ResourceUsage:
    """What ran since the last account, added to it."""
    accounted_since = parse_timestamp(previous.accounted_time) or 0.0
    spans = sorted(
        span for pod in pods if (span := _get_running_span(pod, accounted_since, parse_timestamp(now) or 0.0))
    )
    active_seconds, end = 0.0, accounted_since
    for start, finish in spans:
        active_seconds += max(0.0, finish - max(start, end))
        end = max(end, finish)
    gpu_seconds = sum(stop - start for start, stop in spans) * gpus_per_node
    accounted_until = max(now, previous.accounted_time or "")  # no second counts twice, whichever way the clock was set
    return ResourceUsage(
        (previous.active_seconds or 0) + round(active_seconds),
        (previous.gpu_seconds or 0) + round(gpu_seconds),
        accounted_until,
    )


def _get_running_span(pod: Body, window_start: float, now: float) -> tuple[float, float] | None:
    """When the pod's trainer ran, within these limits."""
    start, end = parse_timestamp(get_started_at(pod)), parse_timestamp(get_finished_at(pod)) or now
    if start is None or min(end, now) <= max(start, window_start):
        return None
    return max(start, window_start), min(end, now)
