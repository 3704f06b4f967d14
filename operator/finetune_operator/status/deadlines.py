"""When something is due that no event will tell. Pure; times are seconds since 1970."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from finetune_operator.api import FineTuneJobStatus, ObservedProgress
from finetune_operator.api.run_policy import Wanted
from finetune_operator.observed import objects
from finetune_operator.observed.objects import Body, Said
from finetune_operator.observed.state import Seen
from finetune_operator.status.usage import moment
from finetune_trainer.contract import Progress, Stage

SLOW_START = 5.0
"""Seconds after which events are asked why nothing happens; a pod that waits for a Secret says so nowhere else."""
BACK_OFF = 30.0
"""The same after an attempt has ended, for a Job waits some time before the next."""
_LOST_AFTER = 60.0  # seconds after its grace period, in which a living kubelet would have ended the pod


def next_look(seen: Seen, status: FineTuneJobStatus, now: str) -> float | None:
    """Seconds until the next of all that may be due."""
    last = objects.newest(objects.leaders(seen.pods))
    dues = [lost_due(pod) for pod in (*seen.left, *seen.pods)]
    if seen.job:
        dues.append(startup_due(seen.wanted, seen.job, status.last_attempt_time, seen.pods))
    if last and objects.is_running(last):
        dues.append(stall_due(seen.wanted, status.progress, status.last_attempt_time, seen.progress))
    waits = [until(due, now) for due in dues if due and not is_due(due, now)]
    if slow := slow_start(seen.job, seen.pods):
        waits.append(slow.next_look(now))
    if seen.obstacle or _is_queued(seen.job):
        waits.append(_patience(_waited(status, now)))
    return min((each for each in waits if each), default=None)


class Slow(NamedTuple):
    """What does not start."""

    body: Body
    """The object whose events say why."""
    since: float
    """When it began to be waited for."""
    grace: float
    """Seconds that are nothing unusual."""

    def is_due(self, now: str) -> bool:
        """Whether to ask."""
        return self._waited(now) >= self.grace

    def next_look(self, now: str) -> float:
        """Seconds until the next time to ask."""
        waited = self._waited(now)
        return _patience(waited) if waited >= self.grace else max(1.0, self.grace - waited)

    def told(self, events: Iterable[Body]) -> Said | None:
        """The last warning since then."""
        return objects.newest_warning(
            each for each in events if (moment(objects.event_time(each)) or 0.0) >= self.since
        )

    def _waited(self, now: str) -> float:
        return (moment(now) or 0.0) - self.since


def slow_start(job: Body | None, pods: Iterable[Body]) -> Slow | None:
    """A pod on a node that does not start, or a Job without a pod, or without the next one."""
    if job is None or objects.has_ended(job) or objects.is_being_deleted(job) or _is_queued(job):
        return None
    last = objects.newest(objects.leaders(pods))
    if last is None:
        return Slow(job, _created(job), SLOW_START)
    if not objects.is_alive(last):
        return Slow(job, moment(objects.finished_at(last)) or _created(last), BACK_OFF)
    pending = objects.is_scheduled(last) and not objects.is_running(last)
    return Slow(last, _created(last), SLOW_START) if pending else None


def _created(body: Body) -> float:
    return moment(body["metadata"]["creationTimestamp"]) or 0.0


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


def startup_due(wanted: Wanted, job: Body, started: str | None, pods: Iterable[Body]) -> float | None:
    """When a trainer must have started. The Job's start moves when a queue lets it go on."""
    begun = moment(job.get("status", {}).get("startTime"))
    if wanted.startup_deadline is None or begun is None or job["spec"].get("suspend"):
        return None
    # By its node's clock a pod may have started before its Job; when it was created tells of which start it is.
    started_since = any(objects.started_at(pod) and _created(pod) >= begun - SLOW_START for pod in pods)
    return None if started_since or (moment(started) or 0.0) >= begun else begun + wanted.startup_deadline


def lost_due(pod: Body) -> float | None:
    """When a pod that has to end is late. Its `deletionTimestamp` is the end of its grace period."""
    end = moment(pod["metadata"].get("deletionTimestamp"))
    return end + _LOST_AFTER if end and objects.is_alive(pod) else None


def stall_due(
    wanted: Wanted, progress: ObservedProgress | None, started: str | None, said: Progress | None
) -> float | None:
    """When a trainer that answers has stood still for half of the time after which it ends itself.

    A trainer that waits for its output does not end itself for that.
    """
    if said and said.stage is Stage.WAITING_FOR_OUTPUT:
        return None
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
    running = [start for pod in pods if objects.is_running(pod) and (start := moment(objects.started_at(pod)))]
    if wanted.active_deadline is None or begun is None or not running:
        return None
    counted = max(0.0, (moment(status.accounted_time) or 0.0) - min(running))  # of this attempt, in activeSeconds
    left = wanted.active_deadline - ((status.active_seconds or 0) - counted)
    return max(1, round(min(running) - begun + left))
