"""The status of a FineTuneJob, computed from its previous status and the observed state. Only this module builds it."""

from __future__ import annotations

from finetune_operator.api import FineTuneJobStatus, ObjectMeta, ObservedProgress
from finetune_operator.observed.job import get_job_finished_at
from finetune_operator.observed.objects import TERMINAL_CONDITIONS, get_name
from finetune_operator.observed.pod import find_newest_pod, get_started_at, get_termination, list_rank_zero_pods
from finetune_operator.observed.state import ObservedState, RunHistory
from finetune_operator.status import readable, usage
from finetune_operator.status.conditions import Headline, build_conditions
from finetune_operator.status.run_state import RunState, StateKind, compute_state
from finetune_operator.status.stops import find_stop
from finetune_trainer.contract import Outcome, Progress, Reason, Stage, StepResult


def is_terminal(status: FineTuneJobStatus) -> bool:
    """Return whether the run has completed, failed or was cancelled. A terminal status never changes again."""
    return any(condition.status == "True" and condition.type in TERMINAL_CONDITIONS for condition in status.conditions)


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
    progress = _find_latest_progress(observed, previous, attempts)
    step_result = _find_step_result(observed) or previous.step_result
    stop = find_stop(observed.run_policy, previous.model_copy(update={"step_result": step_result}), pods, now)
    state = compute_state(observed, _build_run_history(attempts, observed, progress, step_result, now), stop)
    streak = usage.InterruptionStreak() if state.kind is StateKind.SUSPENDED else attempts.previous_streak
    headline = Headline(state.kind.value[1], state.reason, state.message, meta.generation)
    status = FineTuneJobStatus(
        observed_generation=meta.generation,
        phase=state.kind.value[0],
        reason=state.reason,
        conditions=build_conditions(headline, previous.conditions, now),
        attempts=attempts.count,
        last_attempt_time=attempts.last_attempt_time,
        last_attempt_creation_time=attempts.last_attempt_creation_time,
        interruptions=streak.interruptions or None,
        unreported_interruptions=streak.unreported or None,
        job_name=get_name(observed.job) if observed.job else previous.job_name,
        last_checkpoint_time=checkpoint.time,
        last_checkpoint_step=checkpoint.step,
        active_seconds=previous.active_seconds,
        gpu_seconds=previous.gpu_seconds,
        accounted_time=previous.accounted_time,
        duration=previous.duration,
        step_result=step_result,
        progress=_compute_progress(state, observed, progress, now),
        **_build_outcome_fields(state, observed, previous, now),
    )
    return status if status == previous else _add_usage(status, previous, observed, now)


def _build_run_history(
    attempts: usage.AttemptCounts,
    observed: ObservedState,
    progress: ObservedProgress | None,
    step_result: StepResult | None,
    now: str,
) -> RunHistory:
    streak = usage.compute_current_streak(attempts, observed.pods)
    stage = progress.stage if progress else None
    return RunHistory(
        now=now,
        interruptions=streak.interruptions,
        unreported_interruptions=streak.unreported,
        last_attempt_time=attempts.last_attempt_time,
        last_attempt_creation_time=attempts.last_attempt_creation_time,
        progress=progress,
        stage=stage,
        step_result=step_result,
    )


def _find_step_result(observed: ObservedState) -> StepResult | None:
    outcome = _find_outcome(observed)
    return outcome.step_result if outcome and outcome.reason is Reason.STEP_REACHED else None


def _build_outcome_fields(
    state: RunState, observed: ObservedState, previous: FineTuneJobStatus, now: str
) -> dict[str, object]:
    """Return the fields that depend on the state and on the outcome in the termination message."""
    outcome = _find_outcome(observed)
    is_finished = state.kind in (StateKind.COMPLETE, StateKind.FAILED, StateKind.CANCELLED)
    ends_with_job = state.kind is not StateKind.CANCELLED
    job_finished_at = get_job_finished_at(observed.job) if observed.job and ends_with_job else None
    starts = [start for start in (previous.start_time, *map(get_started_at, observed.pods)) if start]
    return {
        "start_time": min(starts, default=None),
        "completion_time": (job_finished_at or now) if is_finished else None,
        "backend": (outcome and outcome.backend) or previous.backend,
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


def _add_usage(
    status: FineTuneJobStatus, previous: FineTuneJobStatus, observed: ObservedState, now: str
) -> FineTuneJobStatus:
    """Return a changed status with the time used. It alone does not change a status, to avoid constant writes."""
    pods = (*observed.orphaned_pods, *observed.pods)
    if status.last_attempt_time is None and not any(map(get_started_at, pods)):
        return status
    resource_usage = usage.compute_usage(previous, pods, observed.run_policy.gpus_per_node, now)
    changes = {
        "duration": readable.format_span(status.start_time or now, status.completion_time or now),
        "active_seconds": resource_usage.active_seconds,
        "gpu_seconds": resource_usage.gpu_seconds,
        "accounted_time": resource_usage.accounted_until,
    }
    return status.model_copy(update=changes)


def _find_latest_progress(
    observed: ObservedState, previous: FineTuneJobStatus, attempts: usage.AttemptCounts
) -> ObservedProgress | None:
    """Return the last reported progress. Of an earlier attempt, it has neither a stage nor an estimate."""
    if observed.progress:
        return _to_observed_progress(observed.progress, previous.progress)
    if previous.progress is None or previous.last_attempt_time == attempts.last_attempt_time:
        return previous.progress
    return previous.progress.model_copy(
        update={"stage": None, "estimated_remaining": None, "estimated_remaining_seconds": None}
    )


def _compute_progress(
    state: RunState, observed: ObservedState, latest: ObservedProgress | None, now: str
) -> ObservedProgress | None:
    """Return the last reported progress. Without a trainer that reports it, nothing estimates the remaining time."""
    if state.kind is StateKind.RUNNING and observed.progress:
        return latest
    outcome = _find_outcome(observed)
    ended = _to_observed_progress(outcome.progress, latest) if outcome and outcome.progress else latest
    if state.kind is StateKind.COMPLETE:
        ended = ended or ObservedProgress(stage=Stage.DONE, last_update_time=now)
        ended = ended.model_copy(update={"stage": Stage.DONE, "percentage": 100, "completed": "100%"})
    if ended is None:
        return None
    ended = ended.model_copy(update={"estimated_remaining_seconds": None})
    activity = readable.format_remaining(ended) if state.kind is StateKind.RUNNING else None
    return ended.model_copy(update={"estimated_remaining": activity})


def _to_observed_progress(progress: Progress, old: ObservedProgress | None) -> ObservedProgress:
    """Return the progress with readable fields, or the old one if only its time differs."""
    fields = progress.model_dump()
    fields["loss"] = None if progress.loss is None else round(progress.loss, 4)  # for the printer column
    new = ObservedProgress(
        **fields, completed=f"{progress.percentage}%", estimated_remaining=readable.format_remaining(progress)
    )
    return old if old and new.model_copy(update={"last_update_time": old.last_update_time}) == old else new
