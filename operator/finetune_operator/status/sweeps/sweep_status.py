"""The status of a FineTuneSweep, computed from its previous status and its trials. Only this module builds it."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api import ObjectMeta
from finetune_operator.api.sweep import (
    BestTrial,
    FineTuneSweepStatus,
    SweepReason,
    TrialCounts,
)
from finetune_operator.observed.objects import TERMINAL_CONDITIONS
from finetune_operator.status.conditions import Headline, build_conditions
from finetune_operator.status.run_state import StateKind
from finetune_operator.status.sweeps.ranking import build_best, rank_configurations
from finetune_operator.status.sweeps.sweep_state import (
    SweepFacts,
    SweepProblem,
    SweepState,
    compute_sweep_state,
    sum_gpu_seconds,
)
from finetune_operator.status.sweeps.trials import COMPLETE, is_cut, is_ended, is_failed

_TERMINAL_KINDS = frozenset({StateKind.COMPLETE, StateKind.FAILED, StateKind.CANCELLED})
_HOUR_SECONDS = 3600


def is_terminal(status: FineTuneSweepStatus) -> bool:
    """Return whether the sweep has completed, failed or was cancelled. Its conditions never change again."""
    return any(condition.status == "True" and condition.type in TERMINAL_CONDITIONS for condition in status.conditions)


def compute_sweep_status(
    meta: ObjectMeta, previous: FineTuneSweepStatus, facts: SweepFacts, now: str
) -> FineTuneSweepStatus:
    """Return the status that follows `previous`. If nothing has changed, it is equal to `previous`.

    The trials of a sweep that has failed are still counted until they have ended.
    """
    observed = previous.model_copy(
        update={
            "observed_generation": meta.generation,
            "trials": list(facts.rows),
            "compared_at_step": facts.compared_at_step or previous.compared_at_step,
            "counts": _count_trials(facts),
            "gpu_seconds": sum_gpu_seconds(facts.rows),
            "start_time": previous.start_time or (now if any(row.created for row in facts.rows) else None),
        }
    )
    if is_terminal(previous):
        return _keep_usage(observed, previous)
    state = compute_sweep_state(facts, previous)
    changes = _build_state_fields(state, meta, previous, now)
    if state.kind is StateKind.COMPLETE:
        changes |= {"best": _build_compared_best(facts), "report_uri": _get_report_uri(facts)}
    return _keep_usage(observed.model_copy(update=changes), previous)


def build_invalid_status(
    meta: ObjectMeta, previous: FineTuneSweepStatus, problem: SweepProblem, now: str
) -> FineTuneSweepStatus:
    """Return the status of a sweep whose spec cannot be read."""
    if is_terminal(previous):
        return previous
    state = SweepState(StateKind.FAILED, problem.reason, problem.message)
    changes = {"observed_generation": meta.generation, **_build_state_fields(state, meta, previous, now)}
    return previous.model_copy(update=changes)


def count_report_hours(previous: FineTuneSweepStatus, now: str) -> int:
    """Return the whole hours since the report failed for the first time, 0 if it has not failed."""
    if previous.reason != SweepReason.REPORT_FAILED:
        return 0
    since = datetime.fromisoformat(previous.conditions[0].last_transition_time)
    return max(0, int((datetime.fromisoformat(now) - since).total_seconds()) // _HOUR_SECONDS)


def _build_state_fields(
    state: SweepState, meta: ObjectMeta, previous: FineTuneSweepStatus, now: str
) -> dict[str, object]:
    phase, expected = state.kind.value
    headline = Headline(expected, state.reason, state.message, meta.generation)
    return {
        "phase": phase,
        "reason": state.reason.value,
        "conditions": build_conditions(headline, previous.conditions, now),
        "completion_time": now if state.kind in _TERMINAL_KINDS else None,
    }


def _count_trials(facts: SweepFacts) -> TrialCounts:
    ended = sum(map(is_ended, facts.rows))
    return TrialCounts(
        total=len(facts.rows),
        active=len(facts.active_names),
        complete=sum(row.phase == COMPLETE for row in facts.rows),
        cut=sum(map(is_cut, facts.rows)),
        failed=sum(map(is_failed, facts.rows)),
        finished=f"{ended}/{len(facts.rows)}",
    )


def _build_compared_best(facts: SweepFacts) -> BestTrial:
    best, state = build_best(rank_configurations(facts.rows, facts.spec.objective.metric)), facts.report
    if state and state.report:
        report = state.report
        changes = {"verdict": report.verdict, "message": report.message, "change": report.change, "test": report.test}
    else:
        changes = {"verdict": "NotCompared", "message": state.error[:1024] if state else ""}
    return best.model_copy(update=changes)


def _get_report_uri(facts: SweepFacts) -> str | None:
    return facts.report.report.report_uri if facts.report and facts.report.report else None


def _keep_usage(status: FineTuneSweepStatus, previous: FineTuneSweepStatus) -> FineTuneSweepStatus:
    """Return `previous` if the GPU-seconds alone have changed, to avoid constant writes."""
    return previous if _drop_usage(status) == _drop_usage(previous) else status


def _drop_usage(status: FineTuneSweepStatus) -> FineTuneSweepStatus:
    trials = [row.model_copy(update={"gpu_seconds": None}) for row in status.trials]
    return status.model_copy(update={"gpu_seconds": None, "trials": trials})
