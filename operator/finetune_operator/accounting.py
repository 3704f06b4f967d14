"""What a run has used up: attempts, interruptions, seconds, checkpoints. Pure.

Pods vanish, so sums stand in the status, each beside the time up to which it counts; a pod counts from there on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from finetune_operator import children
from finetune_operator.api import FineTuneJobStatus
from finetune_operator.children import Body
from finetune_trainer.contract import ExitCode, Progress

MAX_INTERRUPTIONS = 3
"""Attempts in a row that may be interrupted without a newer checkpoint."""
_CLOCK_SKEW = 60.0  # seconds that a node's clock may be ahead
_NOT_COUNTED = frozenset({ExitCode.PREEMPTED, ExitCode.PEER_LOST})


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


def attempts(previous: FineTuneJobStatus, pods: Iterable[Body], newest: Checkpoint) -> Attempts:
    """Add the pods that started after the last one that is counted."""
    started = {start: pod for pod in pods if (start := children.started_at(pod))}
    last, interruptions = previous.last_attempt_time, previous.interruptions or 0
    new = sorted(start for start in started if start > (last or ""))
    count = max(previous.attempts or 0, len(new)) if last is None else (previous.attempts or 0) + len(new)
    for start in new:
        if last:
            interruptions = _after(interruptions, last, started.get(last), newest)
        last = start
    return Attempts(count or None, last, interruptions or None)


def in_vain(ran: Attempts, pods: Iterable[Body], newest: Checkpoint) -> int:
    """Interruptions in a row, with the last attempt's if it was one."""
    pod = next((pod for pod in pods if ran.last and children.started_at(pod) == ran.last), None)
    if pod is None or children.is_alive(pod):
        return ran.interruptions or 0
    return _after(ran.interruptions or 0, str(ran.last), pod, newest)


def _after(interruptions: int, start: str, pod: Body | None, newest: Checkpoint) -> int:
    """Interruptions in a row after an attempt has ended. One whose pod is gone was taken away."""
    if (moment(newest.time) or 0.0) > (moment(start) or 0.0):
        return 0
    return interruptions + int(pod is None or is_interrupted(pod))


def is_interrupted(pod: Body) -> bool:
    """Whether the Job starts another one without counting this, as its `podFailurePolicy` says."""
    conditions = pod.get("status", {}).get("conditions") or []
    if any(each["type"] == "DisruptionTarget" and each["status"] == "True" for each in conditions):
        return True
    return children.ended(pod).exit_code in _NOT_COUNTED


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
    return Used((previous.active_seconds or 0) + round(active), (previous.gpu_seconds or 0) + round(held), now)


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
