"""When something is due that no event will tell. Pure; times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_operator import children
from finetune_operator.accounting import moment
from finetune_operator.api import FineTuneJobStatus, ObservedProgress
from finetune_operator.children import Body
from finetune_operator.seen import Seen
from finetune_operator.wanted import Wanted
from finetune_trainer.contract import Progress

_LOST_AFTER = 60.0  # seconds after its grace period, in which a living kubelet would have ended the pod


def next_look(seen: Seen, status: FineTuneJobStatus, now: str) -> float | None:
    """Seconds until the next of all that may be due."""
    last = children.newest(children.leaders(seen.pods))
    dues = [lost_due(last)] if last else []
    if seen.job:
        dues.append(startup_due(seen.wanted, seen.job, status.last_attempt_time))
    if last and children.is_running(last):
        dues.append(stall_due(seen.wanted, status.progress, status.last_attempt_time, seen.progress))
    waits = [until(due, now) for due in dues if due and not is_due(due, now)]
    slow = slow_start(seen.job, seen.pods)
    if slow:
        waits.append(_patience(age(slow, now)))
    if seen.obstacle or _is_queued(seen.job):
        waits.append(_patience(_waited(status, now)))
    return min((each for each in waits if each), default=None)


def slow_start(job: Body | None, pods: Iterable[Body]) -> Body | None:
    """The object whose events say why nothing happens: a pod on a node that does not start, a Job without a pod."""
    if job is None or children.has_ended(job) or _is_queued(job):
        return None
    last = children.newest(children.leaders(pods))
    if last is None:
        return job
    pending = children.is_alive(last) and children.is_scheduled(last) and not children.is_running(last)
    return last if pending else None


def age(body: Body, now: str) -> float:
    """Seconds since the object was created."""
    return (moment(now) or 0.0) - (moment(body["metadata"]["creationTimestamp"]) or 0.0)


def until(due: float | None, now: str) -> float | None:
    """Seconds until that moment; at least one, so that it has come by then."""
    return None if due is None else max(1.0, due - (moment(now) or 0.0) + 0.5)


def _is_queued(job: Body | None) -> bool:
    return bool(job and job["spec"].get("suspend"))


def _waited(status: FineTuneJobStatus, now: str) -> float:
    """Seconds since the run last stopped or was found not to start."""
    since = min((moment(each.last_transition_time) or 0.0 for each in status.conditions), default=0.0)
    return (moment(now) or 0.0) - since


def _patience(waited: float) -> float:
    """When to look again at something that waits: the longer it has waited, the later."""
    return min(600.0, max(5.0, waited / 4))


def is_due(due: float | None, now: str) -> bool:
    """Whether that moment has come."""
    return due is not None and due <= (moment(now) or 0.0)


def startup_due(wanted: Wanted, job: Body, started: str | None) -> float | None:
    """When a trainer must have started. The Job's start moves when a queue lets it go on."""
    begun = moment(job.get("status", {}).get("startTime"))
    if wanted.startup_deadline is None or begun is None or job["spec"].get("suspend"):
        return None
    return None if (moment(started) or 0.0) >= begun else begun + wanted.startup_deadline


def lost_due(pod: Body) -> float | None:
    """When a pod that has to end is late. Its `deletionTimestamp` is the end of its grace period."""
    end = moment(pod["metadata"].get("deletionTimestamp"))
    return end + _LOST_AFTER if end and children.is_alive(pod) else None


def stall_due(
    wanted: Wanted, progress: ObservedProgress | None, started: str | None, said: Progress | None
) -> float | None:
    """When a trainer that answers has stood still for half of the time after which it ends itself."""
    moved = max(moment(progress.last_update_time) or 0.0 if progress else 0.0, moment(started) or 0.0)
    return moved + wanted.stall / 2 if said and moved else None


def ttl_due(wanted: Wanted, status: FineTuneJobStatus) -> float | None:
    """When a finished FineTuneJob is deleted."""
    ended = moment(status.completion_time)
    return ended + wanted.ttl if ended and wanted.ttl is not None else None


def active_deadline(wanted: Wanted, job: Body, pods: list[Body], status: FineTuneJobStatus) -> int | None:
    """The Job's own `activeDeadlineSeconds` while a trainer runs, so that it is kept while no operator is there.

    The Job counts from its start, also while its pod waits; a trainer's running time is what is limited here.
    """
    begun = moment(job.get("status", {}).get("startTime"))
    running = [start for pod in pods if children.is_running(pod) and (start := moment(children.started_at(pod)))]
    if wanted.active_deadline is None or begun is None or not running:
        return None
    counted = max(0.0, (moment(status.accounted_time) or 0.0) - min(running))  # of this attempt, in activeSeconds
    left = wanted.active_deadline - ((status.active_seconds or 0) - counted)
    return max(1, round(min(running) - begun + left))
