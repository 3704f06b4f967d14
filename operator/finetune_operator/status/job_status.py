"""The status that a FineTuneJob should have. Pure; the only place where one is made."""

from __future__ import annotations

from finetune_operator.api import Condition, FineTuneJobStatus, ObjectMeta, ObservedProgress
from finetune_operator.observed.job import get_job_finished_at
from finetune_operator.observed.objects import parse_timestamp
from finetune_operator.observed.pod import find_newest_pod, get_started_at, get_termination, list_rank_zero_pods
from finetune_operator.observed.state import ObservedState, RunHistory
from finetune_operator.status import usage
from finetune_operator.status.run_state import RunState, StateKind, compute_state
from finetune_trainer.contract import Outcome, Progress, Stage

MESSAGE_MAX_LENGTH = 4096


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Whether the run ended; such a status never changes again."""
    return any(
        condition.status == "True" and condition.type in ("Complete", "Failed") for condition in status.conditions
    )


def compute_status(
    meta: ObjectMeta, previous: FineTuneJobStatus, observed: ObservedState, now: str
) -> FineTuneJobStatus:
    """The status after `previous`, by what is seen now."""
    if is_terminal(previous):
        return previous.model_copy(update={"observed_generation": meta.generation})
    pods = (*observed.orphaned_pods, *observed.pods)
    recorded_checkpoints = [get_termination(pod).checkpoint for pod in list_rank_zero_pods(pods)]
    checkpoint = usage.find_newest_checkpoint(previous, observed.progress, recorded_checkpoints, now)
    attempts = usage.count_attempts(previous, observed)
    state = compute_state(observed, _build_run_history(attempts, observed, previous, now))
    streak = usage.InterruptionStreak() if state.kind is StateKind.SUSPENDED else attempts.previous_streak
    status = FineTuneJobStatus(
        observed_generation=meta.generation,
        phase=state.kind.value[0],
        conditions=_build_conditions(state, meta, previous, now),
        attempts=attempts.count,
        last_attempt_time=attempts.last_attempt_time,
        interruptions=streak.interruptions or None,
        unreported_interruptions=streak.unreported or None,
        job_name=observed.job["metadata"]["name"] if observed.job else previous.job_name,
        last_checkpoint_time=checkpoint.time,
        last_checkpoint_step=checkpoint.step,
        active_seconds=previous.active_seconds,
        gpu_seconds=previous.gpu_seconds,
        accounted_time=previous.accounted_time,
        **_build_outcome_fields(state, observed, previous, now),
    )
    return status if status == previous else _add_resource_usage(status, previous, observed, now)


def _build_run_history(
    attempts: usage.AttemptCounts, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> RunHistory:
    streak = usage.compute_current_streak(attempts, observed.pods)
    progress = _get_latest_progress(observed, previous)
    stage = (
        progress.stage
        if progress and _is_from_current_attempt(progress, attempts.last_attempt_time, observed)
        else None
    )
    return RunHistory(now, streak.interruptions, streak.unreported, attempts.last_attempt_time, progress, stage)


def _is_from_current_attempt(progress: ObservedProgress, attempt_start: str | None, observed: ObservedState) -> bool:
    """Whether the running pod reported it, also to an operator that has restarted since; by its node's clock."""
    update_time, start_time = parse_timestamp(progress.last_update_time), parse_timestamp(attempt_start)
    return bool(observed.progress) or (update_time is not None and start_time is not None and update_time >= start_time)


def _build_outcome_fields(
    state: RunState, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> dict[str, object]:
    """What follows from the state and from the trainer's last word."""
    outcome = _find_outcome(observed)
    is_finished = state.kind in (StateKind.COMPLETE, StateKind.FAILED)
    return {
        "start_time": _compute_start_time(observed, previous),
        "completion_time": ((observed.job and get_job_finished_at(observed.job)) or now) if is_finished else None,
        "backend": (outcome and outcome.backend) or previous.backend,
        "progress": _compute_progress(state, observed, previous, now),
        "dataset": (outcome and outcome.dataset) or previous.dataset,
        "result": outcome.result if outcome and state.kind is StateKind.COMPLETE else None,
    }


def _add_resource_usage(
    status: FineTuneJobStatus, previous: FineTuneJobStatus, observed: ObservedState, now: str
) -> FineTuneJobStatus:
    """With the seconds used. Only beside another change, so that counting alone writes nothing."""
    resource_usage = usage.compute_usage(
        previous, (*observed.orphaned_pods, *observed.pods), observed.run_policy.gpus_per_node, now
    )
    if status.last_attempt_time is None:
        return status
    changes = {
        "active_seconds": resource_usage.active_seconds,
        "gpu_seconds": resource_usage.gpu_seconds,
        "accounted_time": resource_usage.accounted_until,
    }
    return status.model_copy(update=changes)


def _find_outcome(observed: ObservedState) -> Outcome | None:
    last_pod = find_newest_pod(list_rank_zero_pods(observed.pods or observed.orphaned_pods))
    return get_termination(last_pod).outcome if last_pod else None


def _build_conditions(state: RunState, meta: ObjectMeta, previous: FineTuneJobStatus, now: str) -> list[Condition]:
    _, expected = state.kind.value
    previous_conditions = {condition.type: condition for condition in previous.conditions}
    conditions = []
    for condition_type, is_true in expected.items():
        status = "True" if is_true else "False"
        previous_condition = previous_conditions.get(condition_type)
        conditions.append(
            Condition(
                type=condition_type,
                status="True" if is_true else "False",
                observed_generation=meta.generation,
                last_transition_time=previous_condition.last_transition_time
                if previous_condition and previous_condition.status == status
                else now,
                reason=state.reason,
                message=state.message[:MESSAGE_MAX_LENGTH],
            )
        )
    return conditions


def _compute_start_time(observed: ObservedState, previous: FineTuneJobStatus) -> str | None:
    starts = [start for start in map(get_started_at, observed.pods) if start]
    return min([*starts, previous.start_time] if previous.start_time else starts, default=None)


def _compute_progress(
    state: RunState, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> ObservedProgress | None:
    """What was last said; with the time of before if nothing but the time is new."""
    outcome = _find_outcome(observed)
    last_progress = (outcome and outcome.progress) or previous.progress
    if state.kind is StateKind.RUNNING and observed.progress:
        return _get_latest_progress(observed, previous)
    if state.kind is StateKind.COMPLETE:
        last_progress = last_progress or Progress(stage=Stage.DONE, last_update_time=now)
        last_progress = last_progress.model_copy(update={"stage": Stage.DONE, "percentage": 100})
    # nothing is remaining that is counted down
    return (
        _to_observed_progress(last_progress.model_copy(update={"estimated_remaining_seconds": None}), previous)
        if last_progress
        else None
    )


def _get_latest_progress(observed: ObservedState, previous: FineTuneJobStatus) -> ObservedProgress | None:
    return _to_observed_progress(observed.progress, previous) if observed.progress else previous.progress


def _to_observed_progress(progress: Progress, previous: FineTuneJobStatus) -> ObservedProgress:
    fields = progress.model_dump(exclude={"estimated_remaining"})
    fields["loss"] = None if progress.loss is None else round(progress.loss, 4)  # it is a column
    new_progress = ObservedProgress(
        **fields, estimated_remaining=_format_duration(progress.estimated_remaining_seconds)
    )
    old_progress = previous.progress
    return (
        old_progress
        if old_progress
        and new_progress.model_copy(update={"last_update_time": old_progress.last_update_time}) == old_progress
        else new_progress
    )


def _format_duration(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"
