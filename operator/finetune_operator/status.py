"""The status that a FineTuneJob should have. Pure; the only place where phases, conditions and reasons are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from finetune_operator import children
from finetune_operator.api import (
    Condition,
    ConditionType,
    FineTuneJobStatus,
    Metadata,
    ObservedProgress,
    OperatorReason,
    Phase,
)
from finetune_operator.children import Body, Ended, Said
from finetune_trainer.contract import ExitCode, Outcome, Progress, Reason, Stage

MESSAGE_MAX_LENGTH = 4096


class Obstacle(NamedTuple):
    """Why there is no Job."""

    reason: OperatorReason
    message: str
    final: bool = False
    """Whether it will stay so."""


@dataclass(frozen=True)
class Seen:
    """What the cluster shows of one FineTuneJob."""

    job: Body | None = None
    """Its own Job."""
    pods: tuple[Body, ...] = ()
    """Its own Job's pods."""
    progress: Progress | None = None
    """What the running pod last said."""
    warning: Said | None = None
    """The last warning about the pod that does not start or the Job that has none; of a held Job, Kueue's word."""
    obstacle: Obstacle | None = None


class Kind(Enum):
    """What a state means for phase and conditions: the whole table."""

    WAITING = (Phase.PENDING, {ConditionType.RUNNING: False, ConditionType.RECONCILING: True})
    STARTING = (Phase.PENDING, {ConditionType.RUNNING: False})
    RUNNING = (Phase.RUNNING, {ConditionType.RUNNING: True})
    COMPLETE = (Phase.COMPLETE, {ConditionType.COMPLETE: True, ConditionType.RUNNING: False})
    FAILED = (
        Phase.FAILED,
        {ConditionType.FAILED: True, ConditionType.RUNNING: False, ConditionType.STALLED: True},
    )


class State(NamedTuple):
    """Where a run is and why."""

    kind: Kind
    reason: Reason | OperatorReason
    message: str


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Whether the run ended; such a status never changes again."""
    return any(each.status == "True" and each.type in ("Complete", "Failed") for each in status.conditions)


def next_status(meta: Metadata, previous: FineTuneJobStatus, seen: Seen, now: str) -> FineTuneJobStatus:
    """The status after `previous`, by what is seen now."""
    if is_terminal(previous):
        return previous.model_copy(update={"observed_generation": meta.generation})
    state = state_of(seen)
    phase, _ = state.kind.value
    outcome = _outcome(seen)
    return FineTuneJobStatus(
        observed_generation=meta.generation,
        phase=phase,
        conditions=_conditions(state, meta, previous, now),
        start_time=_start_time(seen, previous),
        completion_time=(children.ended_at(seen.job) or now) if phase in (Phase.COMPLETE, Phase.FAILED) else None,
        attempts=_attempts(seen, previous),
        job_name=seen.job["metadata"]["name"] if seen.job else previous.job_name,
        backend=(outcome and outcome.backend) or previous.backend,
        progress=_progress(state, seen, previous, now),
        dataset=(outcome and outcome.dataset) or previous.dataset,
        result=outcome.result if outcome and state.kind is Kind.COMPLETE else None,
    )


def state_of(seen: Seen) -> State:
    """Where the run is, by what is seen alone."""
    if seen.job is None:
        return _without_job(seen.obstacle)
    last = children.newest(seen.pods)
    if children.condition(seen.job, "Complete"):
        return _complete(last)
    if failed := children.condition(seen.job, "Failed"):
        return _failed(Said(failed.get("reason", ""), failed.get("message", "")), last)
    if children.is_being_deleted(seen.job):
        return State(Kind.STARTING, OperatorReason.JOB_PENDING, "The Job was deleted; another follows when it is gone.")
    if last is None or (seen.job["spec"].get("suspend") and not children.is_alive(last)):
        return _without_pod(seen.job, seen.warning)
    return _attempt(last, seen)


def _without_job(obstacle: Obstacle | None) -> State:
    if obstacle is None:
        return State(Kind.WAITING, OperatorReason.JOB_PENDING, "The Job is about to be created.")
    return State(Kind.FAILED if obstacle.final else Kind.WAITING, obstacle.reason, obstacle.message)


def _complete(last: Body | None) -> State:
    outcome = children.ended(last).outcome if last else None
    if outcome:
        return State(Kind.COMPLETE, outcome.reason, outcome.message)
    message = "The Job succeeded, but its pod's last word is gone; the result lies at spec.output.uri."
    return State(Kind.COMPLETE, OperatorReason.OUTCOME_UNAVAILABLE, message)


def _failed(job: Said, last: Body | None) -> State:
    end = children.ended(last) if last else Ended(None, None, Said("", ""))
    if end.outcome and end.outcome.reason.exit_code is not ExitCode.OK:
        return State(Kind.FAILED, end.outcome.reason, end.outcome.message)
    if end.said.reason == "OOMKilled":
        return State(Kind.FAILED, OperatorReason.OOM_KILLED, _describe(end))
    known = OperatorReason.BACKOFF_LIMIT_EXCEEDED if job.reason == "BackoffLimitExceeded" else None
    message = " ".join(part for part in (f"{job.message}.", _describe(end) if last else "") if part.strip("."))
    return State(Kind.FAILED, known or OperatorReason.OUTCOME_UNAVAILABLE, message)


def _without_pod(job: Body, warning: Said | None) -> State:
    if job["spec"].get("suspend"):
        said = f"Kueue holds the Job. {warning.reason}: {warning.message}" if warning else ""
        message = said or "The Job is suspended, by Kueue until there is quota for it."
        return State(Kind.STARTING, OperatorReason.QUEUED, message)
    if warning:
        return State(Kind.STARTING, OperatorReason.JOB_REFUSED, f"{warning.reason}: {warning.message}")
    return State(Kind.STARTING, OperatorReason.JOB_CREATED, "The Job exists; its pod is about to be created.")


def _attempt(last: Body, seen: Seen) -> State:
    if children.is_running(last):
        return State(Kind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {last['metadata']['name']} trains.")
    if last.get("status", {}).get("phase") == "Succeeded":
        return State(Kind.RUNNING, OperatorReason.POD_RUNNING, f"Pod {last['metadata']['name']} is done.")
    if not children.is_alive(last):
        return State(
            Kind.STARTING, OperatorReason.RETRYING, f"Another attempt follows. {_describe(children.ended(last))}"
        )
    state = _pending(last, seen.warning)
    before = children.newest(pod for pod in seen.pods if pod is not last)
    if before is None:
        return state
    reason = OperatorReason.RETRYING if state.reason is OperatorReason.POD_PENDING else state.reason
    return State(state.kind, reason, f"{state.message} This is a retry. {_describe(children.ended(before))}")


def _pending(pod: Body, warning: Said | None) -> State:
    if message := children.unschedulable(pod):
        return State(Kind.STARTING, OperatorReason.UNSCHEDULABLE, message)
    wait = children.waiting(pod) or Said("", "")
    message = ": ".join(part for part in wait if part)
    if wait.reason in children.IMAGE_REASONS:
        return State(Kind.STARTING, OperatorReason.IMAGE_PULL_FAILED, message)
    if wait.reason in children.CONTAINER_REASONS:
        return State(Kind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, message)
    if warning and warning.reason in children.VOLUME_REASONS:
        return State(Kind.STARTING, OperatorReason.CONTAINER_CONFIG_ERROR, f"{warning.reason}: {warning.message}")
    said = f" {warning.reason}: {warning.message}" if warning else ""
    return State(Kind.STARTING, OperatorReason.POD_PENDING, f"Pod {pod['metadata']['name']} is starting.{said}")


def _describe(end: Ended) -> str:
    if end.outcome:
        return f"The last attempt ended with {end.outcome.reason}: {end.outcome.message}"
    if end.said.reason == "OOMKilled":
        return "The last attempt used more memory than its limit; raise spec.compute.resources.limits.memory."
    said = ": ".join(part for part in end.said if part)
    code = "" if end.exit_code is None else f" with exit status {end.exit_code}"
    return f"The last attempt ended{code}{f' ({said})' if said else ''} and left no word of its own."


def _outcome(seen: Seen) -> Outcome | None:
    last = children.newest(seen.pods)
    return children.ended(last).outcome if last else None


def _conditions(state: State, meta: Metadata, previous: FineTuneJobStatus, now: str) -> list[Condition]:
    _, truths = state.kind.value
    before = {each.type: each for each in previous.conditions}
    conditions = []
    for kind, truth in truths.items():
        status = "True" if truth else "False"
        old = before.get(kind)
        conditions.append(
            Condition(
                type=kind,
                status="True" if truth else "False",
                observed_generation=meta.generation,
                last_transition_time=old.last_transition_time if old and old.status == status else now,
                reason=state.reason,
                message=state.message[:MESSAGE_MAX_LENGTH],
            )
        )
    return conditions


def _start_time(seen: Seen, previous: FineTuneJobStatus) -> str | None:
    starts = [start for start in map(children.started_at, seen.pods) if start]
    return min([*starts, previous.start_time] if previous.start_time else starts, default=None)


def _attempts(seen: Seen, previous: FineTuneJobStatus) -> int:
    counts = seen.job.get("status", {}) if seen.job else {}
    ended = int(counts.get("failed", 0)) + int(counts.get("succeeded", 0))
    started = sum(1 for pod in seen.pods if children.started_at(pod))
    return max(previous.attempts or 0, ended, started)


def _progress(state: State, seen: Seen, previous: FineTuneJobStatus, now: str) -> ObservedProgress | None:
    outcome = _outcome(seen)
    running = seen.progress if state.kind is Kind.RUNNING else None
    last = running or (outcome and outcome.progress) or previous.progress
    if state.kind is Kind.COMPLETE:
        last = last or Progress(stage=Stage.DONE, last_update_time=now)
        last = last.model_copy(update={"stage": Stage.DONE, "percentage": 100})
    if last is None:
        return None
    fields = last.model_dump(exclude={"estimated_remaining"})
    fields["loss"] = None if last.loss is None else round(last.loss, 4)  # it is a column
    if running is None:  # nothing is remaining that is counted down
        fields["estimated_remaining_seconds"] = None
    return ObservedProgress(**fields, estimated_remaining=_for_people(fields["estimated_remaining_seconds"]))


def _for_people(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"
