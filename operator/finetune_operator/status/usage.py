"""What a run has used up: attempts, interruptions, seconds, checkpoints. Pure.

Pods vanish, so sums stand in the status, each beside the time up to which it counts; a pod counts from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body
from finetune_operator.observed.state import Seen
from finetune_trainer.contract import Progress, StoredCheckpoint

MAX_INTERRUPTIONS = 3
"""Attempts that may be interrupted without a newer checkpoint, by their termination messages."""
MAX_UNREPORTED = 30
"""Attempts whose end nobody reports, so that nobody knows what they saved: pods and nodes that vanish."""
_CLOCK_SKEW = 60.0  # seconds that a node's clock may be ahead


class Checkpoint(NamedTuple):
    """The newest that is whole in the store; nothing is known of an empty one."""

    time: str | None = None
    step: int | None = None


class Streak(NamedTuple):
    """Attempts since the last termination message that named a newer checkpoint. Progress has no part in it."""

    interruptions: int = 0
    """Those that were interrupted, and whose termination message names no newer one."""
    unreported: int = 0
    """Those whose end was never reported."""


@dataclass(frozen=True)
class Attempts:
    """How often a trainer was started, and how often in vain."""

    count: int | None
    last: str | None
    """When the last one started."""
    streak: Streak
    """Of those before the last."""


def checkpoint(
    previous: FineTuneJobStatus, said: Progress | None, recorded: Iterable[StoredCheckpoint | None], now: str
) -> Checkpoint:
    """The newest that was ever spoken of, for people to see; not one of the future, for a trainer's word may be forged.

    Nothing is decided by it: a run whose progress cannot be reached ends as any other.
    """
    known = [Checkpoint(previous.last_checkpoint_time, previous.last_checkpoint_step)]
    known += [Checkpoint(said.last_checkpoint_time, said.last_checkpoint_step)] if said else []
    known += [Checkpoint(each.time, each.step) for each in recorded if each]
    latest = (moment(now) or 0.0) + _CLOCK_SKEW
    past = [each for each in known if 0 < (moment(each.time) or 0.0) <= latest]
    # Times are whole seconds, in which there may be several.
    return max(past, key=lambda each: (moment(each.time) or 0.0, each.step or 0), default=Checkpoint())


def attempts(previous: FineTuneJobStatus, seen: Seen) -> Attempts:
    """Add the pods that started after the last one that is counted."""
    pods = objects.leaders((*seen.left, *seen.pods))
    last = previous.last_attempt_time
    streak = Streak(previous.interruptions or 0, previous.unreported_interruptions or 0)
    new = sorted({start for pod in pods if (start := objects.started_at(pod)) and start > (last or "")})
    count = max(previous.attempts or 0, len(new)) if last is None else (previous.attempts or 0) + len(new)
    for start in new:
        if last:
            streak = _next(streak, last, seen)
        last = start
    return Attempts(count or None, last, streak)


def _next(streak: Streak, last: str, seen: Seen) -> Streak:
    """The streak when another attempt starts after the one that started at `last`.

    One of an earlier Job was not interrupted: it was suspended, or its Job was deleted by hand.
    """
    pod = _started(last, seen.pods)
    made = seen.job["metadata"].get("creationTimestamp", "") if seen.job else ""
    if pod is None and (last < made or _started(last, seen.left)):
        return Streak()
    return _after(streak, pod, seen.pods)


def in_vain(ran: Attempts, pods: Sequence[Body]) -> Streak:
    """The streak with the last attempt in it, if that has ended."""
    pod = _started(ran.last, pods) if ran.last else None
    return ran.streak if pod is None or objects.is_alive(pod) else _after(ran.streak, pod, pods)


def _started(at: str, pods: Iterable[Body]) -> Body | None:
    return next((pod for pod in objects.leaders(pods) if objects.started_at(pod) == at), None)


def _after(streak: Streak, leader: Body | None, pods: Sequence[Body]) -> Streak:
    """The streak after an attempt that has ended; without a leader its pod is gone."""
    if leader is None or not objects.is_reported(leader):
        return streak._replace(unreported=streak.unreported + 1)
    if _has_saved(leader):
        return Streak()
    # One that lost a peer was not interrupted if that peer failed.
    interrupted = objects.is_interrupted(leader) and not objects.failed_peers(leader, pods)
    return streak._replace(interruptions=streak.interruptions + int(interrupted))


def _has_saved(pod: Body) -> bool:
    """Whether its termination message names a checkpoint of this attempt, by the clock of its own node."""
    saved = objects.ended(pod).checkpoint
    time = moment(saved.time) if saved else None
    start, end = moment(objects.started_at(pod)), moment(objects.finished_at(pod))
    return time is not None and start is not None and start < time <= (end or start) + _CLOCK_SKEW


class Used(NamedTuple):
    """Seconds up to a time."""

    active: int
    held: int
    """Times the GPUs of each pod."""
    until: str


def used(previous: FineTuneJobStatus, pods: Iterable[Body], gpus: int, now: str) -> Used:
    """What ran since the last account, added to it."""
    since = moment(previous.accounted_time) or 0.0
    spans = sorted(span for pod in pods if (span := _span(pod, since, moment(now) or 0.0)))
    active, end = 0.0, since
    for start, stop in spans:
        active += max(0.0, stop - max(start, end))
        end = max(end, stop)
    held = sum(stop - start for start, stop in spans) * gpus
    until = max(now, previous.accounted_time or "")  # no second counts twice, whichever way the clock was set
    return Used((previous.active_seconds or 0) + round(active), (previous.gpu_seconds or 0) + round(held), until)


def _span(pod: Body, since: float, now: float) -> tuple[float, float] | None:
    """When the pod's trainer ran, within these limits."""
    start, end = moment(objects.started_at(pod)), moment(objects.finished_at(pod)) or now
    if start is None or min(end, now) <= max(start, since):
        return None
    return max(start, since), min(end, now)


def moment(text: str | None) -> float | None:
    """Seconds since 1970 of a time as Kubernetes writes it; None if it is none, for it may be a stranger's word."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except (ValueError, OverflowError, TypeError):
        return None
