"""What the trials of a FineTuneSweep must do next: which are created, and how their FineTuneJobs change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from finetune_operator.api.objects import Body
from finetune_operator.api.sweep import TrialStatus
from finetune_operator.status.sweeps.halving import has_arrived
from finetune_operator.status.sweeps.trials import ChildState, is_cut, is_ended


class TrialPolicy(NamedTuple):
    """What the sweep wants of all trials."""

    max_parallel: int
    step: int | None = None
    """The step that the remaining trials train up to, or None if they train to the end."""
    is_stopped: bool = False
    """Whether no trial may run now, and none is created."""
    is_cancelled: bool = False
    """Whether all trials end for good."""


class TrialPlan(NamedTuple):
    """What must be written."""

    creations: list[TrialStatus]
    patches: dict[str, Body]
    """The changes of the specs of FineTuneJobs, by name."""


def plan_trials(rows: Sequence[TrialStatus], children: Mapping[str, ChildState], policy: TrialPolicy) -> TrialPlan:
    """Return what must be written. If nothing is to be changed, it is empty."""
    is_halted = policy.is_stopped or policy.is_cancelled
    runnable = [] if is_halted else _choose_runnable(rows, children, policy)
    names = {row.name for row in runnable}
    patches: dict[str, Body] = {}
    for row in rows:
        child = children.get(row.name)
        if child is None or child.is_ended:
            continue
        desired = _get_desired_spec(row, child, policy, may_run=row.name in names)
        if patch := {key: value for key, value in desired.items() if _get_field(child, key) != value}:
            patches[row.name] = patch
    return TrialPlan([row for row in runnable if row.name not in children], patches)


def _choose_runnable(
    rows: Sequence[TrialStatus], children: Mapping[str, ChildState], policy: TrialPolicy
) -> list[TrialStatus]:
    """Return the trials that may run: first those that run, then those that wait, both in the order of numbers."""
    active_names = {name for name, child in children.items() if child.is_active}
    able = [row for row in rows if not is_cut(row) and not is_ended(row) and not _is_waiting_for_others(row, policy)]
    others = len(active_names - {row.name for row in able})
    running = [row for row in able if row.name in active_names]
    waiting = [row for row in able if row.name not in active_names and _may_start(row, children)]
    return [*running, *waiting][: max(0, policy.max_parallel - others)]


def _is_waiting_for_others(row: TrialStatus, policy: TrialPolicy) -> bool:
    return policy.step is not None and has_arrived(row, policy.step)


def _may_start(row: TrialStatus, children: Mapping[str, ChildState]) -> bool:
    """Return whether a trial can be created or resumed. One that has used its own budget cannot."""
    child = children.get(row.name)
    return not row.created if child is None else not child.is_out_of_budget


def _get_desired_spec(row: TrialStatus, child: ChildState, policy: TrialPolicy, *, may_run: bool) -> Body:
    """Return the fields that must have these values. A run that waits for its turn is left as it is."""
    if policy.is_cancelled or is_cut(row):
        return {"cancel": True}
    if may_run:
        return {"suspend": False, "suspendAtStep": policy.step}
    if not policy.is_stopped and not is_ended(row) and _is_waiting_for_others(row, policy):
        return {"suspendAtStep": policy.step}
    return {"suspend": True} if child.is_active and not is_ended(row) else {}


def _get_field(child: ChildState, key: str) -> object:
    return {"suspend": child.suspend, "suspendAtStep": child.suspend_at_step, "cancel": child.cancel}[key]
