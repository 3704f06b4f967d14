"""What a FineTuneSweep does next: which trials halving ends, and what must be written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune_operator.api.sweep import FineTuneSweepSpec, FineTuneSweepStatus, TrialStatus
from finetune_operator.status.sweeps.halving import advance_halving
from finetune_operator.status.sweeps.scheduling import TrialPlan, TrialPolicy, plan_trials
from finetune_operator.status.sweeps.sweep_state import has_too_many_failures, is_budget_used, sum_gpu_seconds
from finetune_operator.status.sweeps.trials import FAILED, ChildState


class SweepDecision(NamedTuple):
    """The decisions of one reconcile."""

    rows: list[TrialStatus]
    """The trials, with the decisions of halving. They must be stored before a FineTuneJob is changed."""
    step: int | None
    """The step of halving that the remaining trials train up to."""
    compared_at_step: int | None
    """The last step of halving at which trials were compared."""
    plan: TrialPlan


def decide(
    spec: FineTuneSweepSpec,
    previous: FineTuneSweepStatus,
    rows: Sequence[TrialStatus],
    children: Mapping[str, ChildState],
) -> SweepDecision:
    """Return the decisions about trials as they are now. They depend on nothing else, so that an operator that was
    restarted decides the same."""
    is_cancelled = _must_cancel(spec, previous, rows)
    halved = advance_halving(rows, None if is_cancelled else spec.halving, previous.compared_at_step)
    is_stopped = spec.suspend or is_budget_used(spec, sum_gpu_seconds(rows))
    policy = TrialPolicy(spec.max_parallel, halved.step, is_stopped, is_cancelled)
    plan = plan_trials(halved.rows, children, policy)
    return SweepDecision(halved.rows, halved.step, halved.compared_at_step, plan)


def _must_cancel(spec: FineTuneSweepSpec, previous: FineTuneSweepStatus, rows: Sequence[TrialStatus]) -> bool:
    """Return whether all trials end for good: the sweep is cancelled, or it has failed."""
    has_failed = any(each.type == FAILED and each.status == "True" for each in previous.conditions)
    return spec.cancel or has_failed or has_too_many_failures(spec, rows)
