"""The status of a FineTuneJob, computed from its previous status and the observed state. Only this module builds it."""

from __future__ import annotations

from finetune_operator.api import Condition, FineTuneJobStatus, ObjectMeta, ObservedProgress
from finetune_operator.observed.job import get_job_finished_at
from finetune_operator.observed.objects import get_name, parse_timestamp
from finetune_operator.observed.pod import find_newest_pod, get_started_at, get_termination, list_rank_zero_pods
from finetune_operator.observed.state import ObservedState, RunHistory
from finetune_operator.status import usage
from finetune_operator.status.run_state import RunState, StateKind, compute_state
from finetune_trainer.contract import Outcome, Progress, Stage

MESSAGE_MAX_LENGTH = 4096


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Return whether the run has completed or failed. A terminal status never changes again."""
    return any(
        condition.status == "True" and condition.type in ("Complete", "Failed") for condition in status.conditions
    )


def compute_status(
    meta: ObjectMeta, previous: FineTuneJobStatus, observed: ObservedState, now: str
) -> FineTuneJobStatus:
    """Return the status that follows `previous`. If nothing has changed, it is equal to `previous`."""
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
        job_name=get_name(observed.job) if observed.job else previous.job_name,
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
    is_current = progress and _is_from_current_attempt(progress, attempts.last_attempt_time, observed)
    stage = progress.stage if progress and is_current else None
    return RunHistory(now, streak.interruptions, streak.unreported, attempts.last_attempt_time, progress, stage)


def _is_from_current_attempt(progress: ObservedProgress, attempt_start: str | None, observed: ObservedState) -> bool:
    """Return whether the running pod reported the progress, possibly to an operator that has restarted since.

    Both times are those of the pod's node.
    """
    update_time, start_time = parse_timestamp(progress.last_update_time), parse_timestamp(attempt_start)
    return bool(observed.progress) or (update_time is not None and start_time is not None and update_time >= start_time)


def _build_conditions(state: RunState, meta: ObjectMeta, previous: FineTuneJobStatus, now: str) -> list[Condition]:
    _, expected = state.kind.value
    previous_conditions = {condition.type: condition for condition in previous.conditions}
    conditions = []
    for condition_type, is_true in expected.items():
        status = "True" if is_true else "False"
        old = previous_conditions.get(condition_type)
        conditions.append(
            Condition(
                type=condition_type,
                status="True" if is_true else "False",
                observed_generation=meta.generation,
                last_transition_time=old.last_transition_time if old and old.status == status else now,
                reason=state.reason,
                message=state.message[:MESSAGE_MAX_LENGTH],
            )
        )
    return conditions


def _build_outcome_fields(
    state: RunState, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> dict[str, object]:
    """Return the fields that depend on the state and on the outcome in the termination message."""
    outcome = _find_outcome(observed)
    is_finished = state.kind in (StateKind.COMPLETE, StateKind.FAILED)
    job_finished_at = get_job_finished_at(observed.job) if observed.job else None
    starts = [start for start in (previous.start_time, *map(get_started_at, observed.pods)) if start]
    return {
        "start_time": min(starts, default=None),
        "completion_time": (job_finished_at or now) if is_finished else None,
        "backend": (outcome and outcome.backend) or previous.backend,
        "progress": _compute_progress(state, observed, previous, now),
        "dataset": (outcome and outcome.dataset) or previous.dataset,
        "model_cache": (outcome and outcome.model_cache) or previous.model_cache,
        "result": outcome.result if outcome and state.kind is StateKind.COMPLETE else None,
        "log_uri": _get_log_uri(state, outcome, previous),
    }


def _get_log_uri(state: RunState, outcome: Outcome | None, previous: FineTuneJobStatus) -> str | None:
    """Return the log of the last attempt that stored one. A complete run removes the logs of its failed attempts."""
    log_uri = outcome.log_uri if outcome else None
    return log_uri if state.kind is StateKind.COMPLETE else log_uri or previous.log_uri


def _find_outcome(observed: ObservedState) -> Outcome | None:
    last_pod = find_newest_pod(list_rank_zero_pods(observed.pods or observed.orphaned_pods))
    return get_termination(last_pod).outcome if last_pod else None


def _add_resource_usage(
    status: FineTuneJobStatus, previous: FineTuneJobStatus, observed: ObservedState, now: str
) -> FineTuneJobStatus:
    """Return a changed status with the seconds used. They alone do not change a status, to avoid constant writes."""
    if status.last_attempt_time is None:
        return status
    pods = (*observed.orphaned_pods, *observed.pods)
    resource_usage = usage.compute_usage(previous, pods, observed.run_policy.gpus_per_node, now)
    changes = {
        "active_seconds": resource_usage.active_seconds,
        "gpu_seconds": resource_usage.gpu_seconds,
        "accounted_time": resource_usage.accounted_until,
    }
    return status.model_copy(update=changes)


def _compute_progress(
    state: RunState, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> ObservedProgress | None:
    """Return the last reported progress. If no trainer runs, it has no estimate of the remaining time."""
    if state.kind is StateKind.RUNNING and observed.progress:
        return _get_latest_progress(observed, previous)
    outcome = _find_outcome(observed)
    last_progress = (outcome and outcome.progress) or previous.progress
    if state.kind is StateKind.COMPLETE:
        last_progress = last_progress or Progress(stage=Stage.DONE, last_update_time=now)
        last_progress = last_progress.model_copy(update={"stage": Stage.DONE, "percentage": 100})
    if last_progress is None:
        return None
    return _to_observed_progress(last_progress.model_copy(update={"estimated_remaining_seconds": None}), previous)


def _get_latest_progress(observed: ObservedState, previous: FineTuneJobStatus) -> ObservedProgress | None:
    return _to_observed_progress(observed.progress, previous) if observed.progress else previous.progress


def _to_observed_progress(progress: Progress, previous: FineTuneJobStatus) -> ObservedProgress:
    """Return the progress with readable fields, or the previous one if only its time differs."""
    fields = progress.model_dump(exclude={"estimated_remaining"})
    fields["loss"] = None if progress.loss is None else round(progress.loss, 4)  # for the printer column
    new = ObservedProgress(**fields, estimated_remaining=_format_duration(progress.estimated_remaining_seconds))
    old = previous.progress
    return old if old and new.model_copy(update={"last_update_time": old.last_update_time}) == old else new


def _format_duration(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d{hours % 24}h"
    if hours:
        return f"{hours}h{minutes % 60}m"
    return f"{minutes}m" if minutes else f"{seconds}s"
