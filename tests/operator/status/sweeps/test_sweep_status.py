"""The status of a sweep: its phase, conditions, counts and Events, and what does not change it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator.builders import NOW
from tests.support.operator.sweeps import REPORT, SimulatedSweep

from finetune_operator.api.sweep import FineTuneSweepStatus, SweepReason
from finetune_operator.status.sweeps.sweep_events import list_sweep_events
from finetune_operator.status.sweeps.sweep_state import ReportState, SweepProblem
from finetune_operator.status.sweeps.sweep_status import (
    build_invalid_status,
    compute_sweep_status,
    count_report_hours,
    is_terminal,
)

Body = dict[str, Any]
LATER = "2026-11-23T10:30:00Z"
PERMANENT = SweepProblem(SweepReason.TRIAL_REFUSED, "Trial lr-2: refused.", is_permanent=True)
PASSING = SweepProblem(SweepReason.NOT_ALLOWED, "Trial lr-2: not allowed.", is_permanent=False)


def _start(spec: Body | None = None) -> SimulatedSweep:
    """Return a sweep with its first trials."""
    sweep = SimulatedSweep({"maxParallel": 3, **(spec or {})})
    sweep.reconcile()
    sweep.reconcile()
    return sweep


def _compute(sweep: SimulatedSweep, now: str = NOW, **facts: Any) -> FineTuneSweepStatus:
    observed = sweep.observe()[0]._replace(**facts)
    return compute_sweep_status(sweep.sweep.metadata, sweep.status, observed, now)


def _get_conditions(status: FineTuneSweepStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in status.conditions}


def _end_all(sweep: SimulatedSweep) -> None:
    for number in range(1, 4):
        sweep.complete(f"lr-{number}", float(number))


def test_sweep_status_first_has_a_row_for_each_trial_and_reconciling() -> None:
    status = _compute(SimulatedSweep())
    assert [row.name for row in status.trials] == ["lr-1", "lr-2", "lr-3"]
    assert (status.phase, status.reason, status.start_time) == ("Pending", "TrialsPending", None)
    assert _get_conditions(status) == {"Running": "False", "Reconciling": "True"}


def test_sweep_status_active_has_counts_and_start() -> None:
    sweep = _start()
    sweep.report("lr-1", "Running", reason="PodRunning", gpuSeconds=7)
    status = sweep.reconcile()
    assert (status.phase, status.reason, status.start_time) == ("Running", "TrialsActive", NOW)
    assert (status.counts.active, status.counts.finished, status.gpu_seconds) == (3, "0/3", 7)
    assert _get_conditions(status) == {"Running": "True"}


def test_sweep_status_gpu_seconds_alone_are_not_written() -> None:
    sweep = _start()
    sweep.report("lr-1", "Running", reason="PodRunning", gpuSeconds=7)
    before = sweep.reconcile()
    sweep.report("lr-1", "Running", reason="PodRunning", gpuSeconds=70)
    assert sweep.reconcile() == before


def test_sweep_status_complete_never_changes() -> None:
    sweep = _start()
    _end_all(sweep)
    status = sweep.reconcile()
    assert (status.phase, status.reason, status.completion_time) == ("Complete", "Completed", NOW)
    assert (status.best and status.best.verdict, status.report_uri) == ("Better", REPORT.report_uri)
    sweep.children.clear()
    sweep.edit(cancel=True, max_failed=0)
    assert sweep.reconcile() == status


def test_sweep_status_failed_counts_trials_until_they_have_ended() -> None:
    sweep = _start({"maxFailed": 0})
    sweep.report("lr-1", "Failed", reason="OOMKilled")
    status = sweep.reconcile()
    assert (status.reason, is_terminal(status)) == ("TooManyFailedTrials", True)
    assert {name for name, body in sweep.children.items() if body["spec"]["cancel"]} == {"lr-2", "lr-3"}
    sweep.report("lr-2", "Cancelled", reason="Cancelled")
    sweep.report("lr-3", "Cancelled", reason="Cancelled")
    ended = sweep.reconcile()
    assert ended.conditions == status.conditions
    assert (ended.counts.failed, ended.counts.finished) == (1, "3/3")


def test_sweep_status_failed_cancels_trials_although_more_failures_are_allowed_now() -> None:
    sweep = _start({"maxFailed": 0})
    sweep.report("lr-1", "Failed", reason="OOMKilled")
    sweep.reconcile(writes=1)
    sweep.edit(max_failed=3)
    sweep.reconcile()
    assert {name for name, body in sweep.children.items() if body["spec"]["cancel"]} == {"lr-2", "lr-3"}


def test_sweep_status_cancelled_before_the_first_trial_ends_at_once() -> None:
    sweep = SimulatedSweep()
    sweep.edit(cancel=True)
    assert (sweep.reconcile().phase, sweep.children) == ("Cancelled", {})


def test_sweep_status_trial_cancelled_by_hand_is_neither_failed_nor_cut() -> None:
    sweep = _start()
    sweep.report("lr-1", "Cancelled", reason="Cancelled")
    counts = sweep.reconcile().counts
    assert (counts.failed, counts.cut, counts.finished) == (0, 0, "1/3")


def test_sweep_status_without_the_metric_fails_and_names_the_trials() -> None:
    sweep = _start()
    for number in range(1, 4):
        sweep.complete(f"lr-{number}", None)
    status = sweep.reconcile()
    assert (status.phase, status.reason) == ("Failed", "NoCompleteTrial")
    assert "lr-1, lr-2, lr-3 have no evalLoss" in status.conditions[0].message


def test_sweep_status_of_trials_that_all_failed_names_their_reasons() -> None:
    sweep = _start()
    for number in range(1, 4):
        sweep.report(f"lr-{number}", "Failed", reason="NonFiniteLoss")
    status = sweep.reconcile()
    assert (status.phase, status.reason) == ("Failed", "NoCompleteTrial")
    assert "lr-1 (NonFiniteLoss), lr-2 (NonFiniteLoss), lr-3 (NonFiniteLoss)" in status.conditions[0].message


def test_sweep_status_complete_names_trials_that_are_not_ranked() -> None:
    sweep = _start()
    _end_all(sweep)
    sweep.complete("lr-2", None)
    message = sweep.reconcile().conditions[0].message
    assert "learningRate 0.0001 (lr-1), with evalLoss 1" in message
    assert "Not ranked, because they have no evalLoss: lr-2." in message


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (PERMANENT, ("Failed", {"Failed": "True", "Running": "False", "Stalled": "True"})),
        (PASSING, ("Pending", {"Running": "False", "Reconciling": "True"})),
    ],
    ids=["permanent", "passing"],
)
def test_sweep_status_of_a_refused_trial(problem: SweepProblem, expected: tuple[str, dict[str, str]]) -> None:
    status = _compute(SimulatedSweep(), problem=problem)
    assert (status.phase, _get_conditions(status)) == expected
    assert (status.reason, problem.message in status.conditions[0].message) == (problem.reason, True)


def test_sweep_status_invalid_spec_fails_unless_it_has_ended() -> None:
    sweep = _start()
    problem = SweepProblem(SweepReason.INVALID_SPEC, "spec.maxParallel: too many", is_permanent=True)
    status = build_invalid_status(sweep.sweep.metadata, sweep.status, problem, NOW)
    assert (status.phase, status.reason, len(status.trials)) == ("Failed", "InvalidSpec", 3)
    _end_all(sweep)
    assert build_invalid_status(sweep.sweep.metadata, sweep.reconcile(), problem, NOW) == sweep.status


def test_sweep_status_report_is_retried_by_the_hour_and_the_first_error_keeps_its_time() -> None:
    sweep = _start()
    _end_all(sweep)
    sweep.status = _compute(sweep, report=ReportState())
    assert (sweep.status.reason, count_report_hours(sweep.status, LATER)) == ("Reporting", 0)
    sweep.status = _compute(sweep, report=ReportState(error="S3 is down"))
    assert (sweep.status.reason, sweep.status.phase) == ("ReportFailed", "Running")
    sweep.status = _compute(sweep, LATER, report=ReportState())
    assert (sweep.status.reason, count_report_hours(sweep.status, LATER)) == ("ReportFailed", 2)
    last = _compute(sweep, LATER, report=ReportState(error="S3 is down", is_last=True))
    assert (last.phase, last.best and last.best.verdict, last.report_uri) == ("Complete", "NotCompared", None)
    assert "It was not compared with the others: S3 is down" in last.conditions[0].message


def test_sweep_status_suspended_names_cause_and_remedy() -> None:
    sweep = _start({"budget": {"gpuSeconds": 100}})
    sweep.report("lr-1", "Running", gpuSeconds=120)
    assert (sweep.reconcile().reason, sweep.status.phase) == ("Suspending", "Running")
    for name in sweep.children:
        assert sweep.children[name]["spec"]["suspend"]
        sweep.report(name, "Suspended", reason="Suspended")
    assert (sweep.reconcile().reason, sweep.status.phase) == ("BudgetExhausted", "Suspended")
    assert "Set spec.budget.gpuSeconds above 120" in sweep.status.conditions[0].message
    sweep.edit(suspend=True)
    assert sweep.reconcile().reason == "Suspended"
    sweep.edit(suspend=False, budget=None)
    assert sweep.reconcile().reason == "TrialsActive"
    assert not any(body["spec"]["suspend"] for body in sweep.children.values())


def test_sweep_status_trial_at_its_own_budget_waits_and_is_named() -> None:
    sweep = _start()
    sweep.report("lr-2", "Suspended", reason="BudgetExhausted")
    message = sweep.reconcile().conditions[0].message
    assert "Raise spec.budget of the FineTuneJobs lr-2 to continue." in message


def test_sweep_lower_max_parallel_suspends_the_last_trials() -> None:
    sweep = _start()
    sweep.edit(max_parallel=1)
    sweep.reconcile()
    assert [sweep.children[name]["spec"]["suspend"] for name in ("lr-1", "lr-2", "lr-3")] == [False, True, True]


def test_list_sweep_events_of_each_change() -> None:
    sweep = SimulatedSweep({"maxParallel": 3, "halving": {"atSteps": [100]}})
    first = sweep.reconcile()
    reasons = [(event.reason, event.type) for event in list_sweep_events(FineTuneSweepStatus(), first)]
    assert reasons == [*[("TrialCreated", "Normal")] * 3, ("TrialsActive", "Normal")]
    for number in range(1, 4):
        sweep.reach_step(f"lr-{number}", 100, float(number))
    second = sweep.reconcile()
    (cut,) = list_sweep_events(first, second)
    assert (cut.reason, "lr-3" in cut.message, "step 100" in cut.message) == ("TrialCut", True, True)
    assert list_sweep_events(second, second) == []
    failed = _compute(SimulatedSweep(), problem=PERMANENT)
    assert list_sweep_events(FineTuneSweepStatus(), failed)[-1].type == "Warning"
