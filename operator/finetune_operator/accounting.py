"""What a run has used up: attempts, interruptions, seconds, checkpoints. Pure.

Pods vanish, so sums stand in the status, each beside the time up to which it counts; a pod counts from there on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from finetune_operator import children
from finetune_operator.api import FineTuneJobStatus
from finetune_operator.children import Body
from finetune_operator.seen import Seen
from finetune_trainer.contract import Progress

MAX_INTERRUPTIONS = 3
"""Attempts in a row that may be interrupted without a newer checkpoint."""
_CLOCK_SKEW = 60.0  # seconds that a node's clock may be ahead


class Checkpoint(NamedTuple):
    """The newest that is whole in the store; nothing is known of an empty one."""

    time: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Attempts:
    """How often a trainer was started, and how often in vain."""

    count: int | None
    last: str | None
    """When the last one started."""
    interruptions: int | None
    """In a row, without a newer checkpoint."""


def checkpoint(previous: FineTuneJobStatus, said: Iterable[Progress | None], now: str) -> Checkpoint:
    """The newest that was ever spoken of, but for the future's: a trainer's word may be forged."""
    known = [Checkpoint(previous.last_checkpoint_time, previous.last_checkpoint_step)]
    known += [Checkpoint(each.last_checkpoint_time, each.last_checkpoint_step) for each in said if each]
    latest = (moment(now) or 0.0) + _CLOCK_SKEW
    past = [each for each in known if 0 < (moment(each.time) or 0.0) <= latest]
    # Times are whole seconds, in which there may be several.
    return max(past, key=lambda each: (moment(each.time) or 0.0, each.step or 0), default=Checkpoint())


def attempts(previous: FineTuneJobStatus, seen: Seen, newest: Checkpoint) -> Attempts:
    """Add the pods that started after the last one that is counted."""
    pods = children.leaders((*seen.left, *seen.pods))
    last, interruptions = previous.last_attempt_time, previous.interruptions or 0
    new = sorted({start for pod in pods if (start := children.started_at(pod)) and start > (last or "")})
    count = max(previous.attempts or 0, len(new)) if last is None else (previous.attempts or 0) + len(new)
    for start in new:
        if last:
            interruptions = _next(interruptions, last, seen, newest)
        last = start
    return Attempts(count or None, last, interruptions or None)


def _next(interruptions: int, last: str, seen: Seen, newest: Checkpoint) -> int:
    """Interruptions in a row when another attempt starts after the one that started at `last`.

    One of an earlier Job was not interrupted: it was suspended, or its Job was deleted by hand.
    """
    pod = next((pod for pod in children.leaders(seen.pods) if children.started_at(pod) == last), None)
    made = seen.job["metadata"].get("creationTimestamp", "") if seen.job else ""
    if pod is None and (last < made or last in map(children.started_at, children.leaders(seen.left))):
        return 0
    return _after(interruptions, last, _interrupted(pod, seen.pods), newest)


def in_vain(ran: Attempts, pods: Sequence[Body], newest: Checkpoint) -> int:
    """Interruptions in a row, with the last attempt's if it was one."""
    pod = next((pod for pod in children.leaders(pods) if ran.last and children.started_at(pod) == ran.last), None)
    if pod is None or children.is_alive(pod):
        return ran.interruptions or 0
    return _after(ran.interruptions or 0, str(ran.last), _interrupted(pod, pods), newest)


def _after(interruptions: int, start: str, interrupted: bool, newest: Checkpoint) -> int:
    """Interruptions in a row after an attempt has ended."""
    if (moment(newest.time) or 0.0) > (moment(start) or 0.0):
        return 0
    return interruptions + int(interrupted)


def _interrupted(leader: Body | None, pods: Sequence[Body]) -> bool:
    """One whose pod is gone was taken away; one that lost a peer was not interrupted if that peer failed."""
    if leader is None:
        return True
    return children.is_interrupted(leader) and not children.failed_peers(leader, pods)


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
    start, end = moment(children.started_at(pod)), moment(children.finished_at(pod)) or now
    if start is None or min(end, now) <= max(start, since):
        return None
    return max(start, since), min(end, now)


def moment(text: str | None) -> float | None:
    """Seconds since 1970 of a time as Kubernetes writes it; None if it is none, for it may be a stranger's word."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except (ValueError, OverflowError, TypeError):
        return None
