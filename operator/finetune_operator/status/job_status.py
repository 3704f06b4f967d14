"""The status that a FineTuneJob should have. Pure; the only place where one is made."""

from __future__ import annotations

from finetune_operator.api import Condition, FineTuneJobStatus, Metadata, ObservedProgress
from finetune_operator.observed import objects
from finetune_operator.observed.state import Past, Seen
from finetune_operator.status import usage
from finetune_operator.status.run_state import Kind, State, state_of
from finetune_trainer.contract import Outcome, Progress, Stage

MESSAGE_MAX_LENGTH = 4096


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Whether the run ended; such a status never changes again."""
    return any(each.status == "True" and each.type in ("Complete", "Failed") for each in status.conditions)


def next_status(meta: Metadata, previous: FineTuneJobStatus, seen: Seen, now: str) -> FineTuneJobStatus:
    """The status after `previous`, by what is seen now."""
    if is_terminal(previous):
        return previous.model_copy(update={"observed_generation": meta.generation})
    pods = (*seen.left, *seen.pods)
    recorded = [objects.ended(pod).checkpoint for pod in objects.leaders(pods)]
    newest = usage.checkpoint(previous, seen.progress, recorded, now)
    ran = usage.attempts(previous, seen)
    state = state_of(seen, _past(ran, seen, previous, now))
    streak = usage.Streak() if state.kind is Kind.SUSPENDED else ran.streak
    status = FineTuneJobStatus(
        observed_generation=meta.generation,
        phase=state.kind.value[0],
        conditions=_conditions(state, meta, previous, now),
        attempts=ran.count,
        last_attempt_time=ran.last,
        interruptions=streak.interruptions or None,
        unreported_interruptions=streak.unreported or None,
        job_name=seen.job["metadata"]["name"] if seen.job else previous.job_name,
        last_checkpoint_time=newest.time,
        last_checkpoint_step=newest.step,
        active_seconds=previous.active_seconds,
        gpu_seconds=previous.gpu_seconds,
        accounted_time=previous.accounted_time,
        **_told(state, seen, previous, now),
    )
    return status if status == previous else _with_account(status, previous, seen, now)


def _past(ran: usage.Attempts, seen: Seen, previous: FineTuneJobStatus, now: str) -> Past:
    streak = usage.in_vain(ran, seen.pods)
    progress = _heard(seen, previous)
    stage = progress.stage if progress and _is_of_this_attempt(progress, ran.last, seen) else None
    return Past(now, streak.interruptions, streak.unreported, ran.last, progress, stage)


def _is_of_this_attempt(progress: ObservedProgress, started: str | None, seen: Seen) -> bool:
    """Whether the running pod reported it, also to an operator that has restarted since; by its node's clock."""
    updated, begun = usage.moment(progress.last_update_time), usage.moment(started)
    return bool(seen.progress) or (updated is not None and begun is not None and updated >= begun)


def _told(state: State, seen: Seen, previous: FineTuneJobStatus, now: str) -> dict[str, object]:
    """What follows from the state and from the trainer's last word."""
    outcome = _outcome(seen)
    ended = state.kind in (Kind.COMPLETE, Kind.FAILED)
    return {
        "start_time": _start_time(seen, previous),
        "completion_time": (objects.ended_at(seen.job) or now) if ended else None,
        "backend": (outcome and outcome.backend) or previous.backend,
        "progress": _progress(state, seen, previous, now),
        "dataset": (outcome and outcome.dataset) or previous.dataset,
        "result": outcome.result if outcome and state.kind is Kind.COMPLETE else None,
    }


def _with_account(status: FineTuneJobStatus, previous: FineTuneJobStatus, seen: Seen, now: str) -> FineTuneJobStatus:
    """With the seconds used. Only beside another change, so that counting alone writes nothing."""
    used = usage.used(previous, (*seen.left, *seen.pods), seen.wanted.gpus, now)
    if status.last_attempt_time is None:
        return status
    account = {"active_seconds": used.active, "gpu_seconds": used.held, "accounted_time": used.until}
    return status.model_copy(update=account)


def _outcome(seen: Seen) -> Outcome | None:
    last = objects.newest(objects.leaders(seen.pods or seen.left))
    return objects.ended(last).outcome if last else None


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
    starts = [start for start in map(objects.started_at, seen.pods) if start]
    return min([*starts, previous.start_time] if previous.start_time else starts, default=None)


def _progress(state: State, seen: Seen, previous: FineTuneJobStatus, now: str) -> ObservedProgress | None:
    """What was last said; with the time of before if nothing but the time is new."""
    outcome = _outcome(seen)
    last = (outcome and outcome.progress) or previous.progress
    if state.kind is Kind.RUNNING and seen.progress:
        return _heard(seen, previous)
    if state.kind is Kind.COMPLETE:
        last = last or Progress(stage=Stage.DONE, last_update_time=now)
        last = last.model_copy(update={"stage": Stage.DONE, "percentage": 100})
    # nothing is remaining that is counted down
    return _unless_same(last.model_copy(update={"estimated_remaining_seconds": None}), previous) if last else None


def _heard(seen: Seen, previous: FineTuneJobStatus) -> ObservedProgress | None:
    return _unless_same(seen.progress, previous) if seen.progress else previous.progress


def _unless_same(said: Progress, previous: FineTuneJobStatus) -> ObservedProgress:
    fields = said.model_dump(exclude={"estimated_remaining"})
    fields["loss"] = None if said.loss is None else round(said.loss, 4)  # it is a column
    new = ObservedProgress(**fields, estimated_remaining=_for_people(said.estimated_remaining_seconds))
    old = previous.progress
    return old if old and new.model_copy(update={"last_update_time": old.last_update_time}) == old else new


def _for_people(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"
