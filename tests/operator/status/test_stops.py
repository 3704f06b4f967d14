"""Every combination of the ways to stop a run with the states of its Job, and the order in which they apply."""

from __future__ import annotations

from datetime import datetime
from itertools import product
from typing import NamedTuple

import pytest
from tests.support.operator.builders import Body, Builders, build_finetunejob, build_key
from tests.support.operator.run_state_table import (
    JOB_COMPLETE,
    JOB_POD_FAILURE_POLICY,
    LATER,
    META,
    NOW,
    build_step_job,
    build_step_reached_pod,
    build_termination_message,
)

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.controller.finetunejob.planning import Changes, plan, plan_follow_up
from finetune_operator.controller.finetunejob.request import ReconcileRequest, build_request
from finetune_operator.observed.state import ObservedState
from finetune_operator.settings import Settings
from finetune_operator.status import deadlines
from finetune_operator.status.job_status import compute_status

STARTED = "2026-11-23T07:00:00Z"  # an hour before NOW
RUNNING_POD = Builders.pod(state={"running": {"startedAt": STARTED}}, phase="Running")


def _build_ended_pod(code: int, reason: str) -> Body:
    state = Builders.terminated(code, build_termination_message(reason))
    state["terminated"]["startedAt"] = STARTED
    return Builders.pod(state=state, phase="Failed" if code else "Succeeded")


def _delete(job: Body) -> Body:
    return {**job, "metadata": {**job["metadata"], "deletionTimestamp": NOW}}


class JobState(NamedTuple):
    """A Job with its pods, the reason of a run that nothing stops, and what happens if something does."""

    job: Body | None
    pods: tuple[Body, ...]
    reason: str
    is_deletable: bool = False
    """Whether a stop deletes the Job."""
    is_gone: bool = False
    """Whether nothing is left to terminate, so that the run is stopped at once."""
    ends_anyway: bool = False
    """Whether a stop changes nothing, because the run ends by itself."""


def _build_job_states(step: int | None) -> dict[str, JobState]:
    """Return the states of a Job that was made with this `suspendAtStep`."""
    job = Builders.job() if step is None else build_step_job(step)
    complete_job = {**job, "status": Builders.job(JOB_COMPLETE)["status"]}
    failed_job = {**job, "status": Builders.job(JOB_POD_FAILURE_POLICY)["status"]}
    states = {
        "no Job": JobState(None, (), "JobPending", is_gone=True),
        "no pod": JobState(job, (), "JobCreated", is_deletable=True),
        "pod running": JobState(job, (RUNNING_POD,), "PodRunning", is_deletable=True),
        "retrying": JobState(job, (_build_ended_pod(75, "StorageUnreachable"),), "Retrying", is_deletable=True),
        "deleted, pod running": JobState(_delete(job), (RUNNING_POD,), "JobPending"),
        "succeeded": JobState(job, (_build_ended_pod(0, "Completed"),), "Finishing", ends_anyway=True),
        "complete": JobState(complete_job, (_build_ended_pod(0, "Completed"),), "Completed", ends_anyway=True),
        "failed": JobState(failed_job, (_build_ended_pod(42, "DataInvalid"),), "DataInvalid", ends_anyway=True),
    }
    if step is None:
        return states
    stopped = JobState(complete_job, (build_step_reached_pod(step),), "StepReached", is_gone=True)
    return {**states, "stopped at a step": stopped}


JOB_STATES = ["no Job", "no pod", "pod running", "retrying", "deleted, pod running", "succeeded", "complete", "failed"]
BUDGETS: dict[str, Body] = {"none": {}, "left": {"activeSeconds": 90_000}, "used up": {"activeSeconds": 1800}}
STEPS = {"none": None, "ahead": 100, "reached": 50}
STEP_RESULT = {"step": 50, "evalLoss": 1.5}


class Case(NamedTuple):
    """What the spec says."""

    suspend: bool
    cancel: bool
    budget: str
    step: str

    def build_spec(self) -> Body:
        spec: Body = {"suspend": self.suspend, "cancel": self.cancel}
        spec |= {"budget": BUDGETS[self.budget]} if BUDGETS[self.budget] else {}
        return spec | ({"suspendAtStep": STEPS[self.step]} if STEPS[self.step] else {})

    def find_stopped_reason(self) -> str | None:
        """Return the reason of the stopped run: cancel, suspend, budget, step, in this order."""
        reasons = {
            "Cancelled": self.cancel,
            "Suspended": self.suspend,
            "BudgetExhausted": self.budget == "used up",
            "StepReached": self.step == "reached",
        }
        return next((reason for reason, applies in reasons.items() if applies), None)


CASES = [Case(*values) for values in product((False, True), (False, True), BUDGETS, STEPS)]


def _build_request(case: Case) -> ReconcileRequest:
    # An attempt of 1800 s is accounted, which is the budget.
    status = FineTuneJobStatus(
        active_seconds=1800, gpu_seconds=1800, accounted_time=NOW, attempts=1, last_attempt_time=STARTED
    ).to_json()
    body = build_finetunejob(spec=case.build_spec()) | {"status": status | {"stepResult": STEP_RESULT}}
    return build_request(build_key(), body, datetime.fromisoformat(NOW))


def _observe(request: ReconcileRequest, state: JobState) -> ObservedState:
    return ObservedState(state.job, state.pods, run_policy=request.run_policy)


def _compute(request: ReconcileRequest, observed: ObservedState) -> FineTuneJobStatus:
    return compute_status(META, request.previous_status, observed, NOW)


@pytest.mark.parametrize("name", JOB_STATES)
@pytest.mark.parametrize("case", CASES, ids=[" ".join(map(str, case)) for case in CASES])
def test_stop_each_combination_has_reason_and_writes(case: Case, name: str) -> None:
    request, state = _build_request(case), _build_job_states(STEPS[case.step])[name]
    observed, stopped_reason = _observe(request, state), case.find_stopped_reason()
    changes, status = plan(request, observed, Settings()), _compute(request, observed)
    assert bool(changes.create_job) is (state.job is None and stopped_reason is None)
    assert bool(changes.delete_job) is (state.is_deletable and stopped_reason is not None)
    if stopped_reason is None or state.ends_anyway:
        assert status.reason == state.reason
    elif state.is_gone:
        assert (status.reason, status.phase) == (stopped_reason, "Cancelled" if case.cancel else "Suspended")
    else:
        assert status.reason == ("Cancelling" if case.cancel else "Suspending")
    assert compute_status(META, status, observed, LATER) == status or status.reason == "PodRunning"


@pytest.mark.parametrize("case", [case for case in CASES if case.step == "ahead"])
def test_stop_at_step_stores_result_then_deletes_job(case: Case) -> None:
    request = _build_request(case)
    observed = _observe(request, _build_job_states(100)["stopped at a step"])
    status = _compute(request, observed)
    assert not plan(request, observed, Settings()).delete_job  # the result is not stored yet
    assert status.step_result
    assert status.step_result.step == 100
    assert status.reason == (case.find_stopped_reason() or "StepReached")
    follow_up = plan_follow_up(request, observed, status)
    assert follow_up == Changes(delete_job=None if case.cancel else observed.job)


def test_cancelled_run_that_was_stopped_at_a_step_ends_now() -> None:
    """Its TTL does not count from the end of the Job, which may be days ago."""
    request = _build_request(Case(False, True, "none", "ahead"))
    observed = _observe(request, _build_job_states(100)["stopped at a step"])
    status = compute_status(META, request.previous_status, observed, LATER)
    assert (status.reason, status.completion_time) == ("Cancelled", LATER)


CHANGED_STEPS = [(None, 100), (100, None), (100, 200), (200, 100)]


@pytest.mark.parametrize(("made_with", "wanted"), CHANGED_STEPS)
def test_stop_step_changed_replaces_job_unless_it_ends(made_with: int | None, wanted: int | None) -> None:
    spec = {} if wanted is None else {"suspendAtStep": wanted}
    request = build_request(build_key(), build_finetunejob(spec=spec), datetime.fromisoformat(NOW))
    for name, state in _build_job_states(made_with).items():
        changes = plan(request, _observe(request, state), Settings())
        assert bool(changes.delete_job) is state.is_deletable, name


def test_stopped_job_whose_pod_is_gone_stays_stopped() -> None:
    """Its pods are deleted before it, and another replica may take over in between."""
    request = _build_request(Case(False, False, "none", "none"))
    request = request._replace(run_policy=request.run_policy._replace(suspend_at_step=100))
    stopped = _build_job_states(100)["stopped at a step"]
    before = _compute(request, _observe(request, stopped))
    assert stopped.job
    observed = ObservedState(_delete(stopped.job), run_policy=request.run_policy)
    assert compute_status(META, before, observed, LATER) == before
    raised = ObservedState(_delete(stopped.job), run_policy=request.run_policy._replace(suspend_at_step=200))
    assert compute_status(META, before, raised, LATER).reason == "JobPending"


@pytest.mark.parametrize("text", ["", "-1", "1e3", "٣", "9" * 5000, "null"])
def test_stop_step_in_annotation_malformed_is_none(text: str) -> None:
    job = build_step_job()
    job["metadata"]["annotations"]["finetune.dev/suspend-at-step"] = text
    request = build_request(build_key(), build_finetunejob(), datetime.fromisoformat(NOW))
    assert not plan(request, ObservedState(job, (RUNNING_POD,)), Settings()).delete_job


def test_stop_step_raised_deletes_stopped_job_and_creates_next() -> None:
    request = _build_request(Case(False, False, "none", "none"))
    observed = _observe(request, _build_job_states(100)["stopped at a step"])
    status = _compute(request, observed)
    assert (status.reason, status.step_result and status.step_result.step) == ("JobPending", 100)
    assert plan_follow_up(request, observed, status).delete_job == observed.job
    job = plan(request, ObservedState(run_policy=request.run_policy), Settings()).create_job
    assert job
    assert "finetune.dev/suspend-at-step" not in job["metadata"]["annotations"]


def test_stop_at_step_of_several_nodes_stops_peers_that_do_not_end() -> None:
    """The pod with index 0 writes its outcome when the checkpoint is stored."""
    spec = {"suspendAtStep": 100, "compute": {"nodes": 2}}
    request = build_request(build_key(), build_finetunejob(spec=spec), datetime.fromisoformat(NOW))
    peer = Builders.pod("bot-1-x", {"running": {"startedAt": STARTED}}, "Running")
    peer["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "1"}
    observed = ObservedState(build_step_job(), (build_step_reached_pod(), peer), run_policy=request.run_policy)
    status = _compute(request, observed)
    assert (status.reason, status.step_result and status.step_result.step) == ("Suspending", 100)
    assert plan_follow_up(request, observed, status).delete_job == observed.job


def test_stop_at_step_without_validation_data_names_training_loss() -> None:
    request = _build_request(Case(False, False, "none", "reached"))
    status = _compute(request, ObservedState(run_policy=request.run_policy))
    assert status.conditions[0].message == (
        "The training has reached step 50: the loss is 1.5. Set spec.suspendAtStep (50) above 50, or remove it, to "
        "resume the run from its latest checkpoint."
    )


BUDGET_DEADLINES = {
    "active seconds": ({"activeSeconds": 4000}, 400.5),
    "GPU-seconds of two GPUs": ({"gpuSeconds": 7400}, 100.5),
    "the first of both": ({"gpuSeconds": 7400, "activeSeconds": 3700}, 100.5),
    "no budget": ({}, None),
}


@pytest.mark.parametrize(("budget", "seconds"), BUDGET_DEADLINES.values(), ids=BUDGET_DEADLINES)
def test_budget_is_checked_at_the_moment_it_is_used_up(budget: Body, seconds: float | None) -> None:
    spec = {"compute": {"gpusPerNode": 2}, **({"budget": budget} if budget else {})}
    request = build_request(build_key(), build_finetunejob(spec=spec), datetime.fromisoformat(NOW))
    observed = ObservedState(Builders.job(), (RUNNING_POD,), run_policy=request.run_policy)
    assert deadlines.requeue_after(observed, FineTuneJobStatus(), NOW) == seconds  # it has run for 3600 s


def test_budget_counts_earlier_attempts_and_pods_of_deleted_jobs() -> None:
    spec = {"budget": {"activeSeconds": 5000}}
    before = FineTuneJobStatus(active_seconds=2000, accounted_time=STARTED, last_attempt_time=STARTED)
    body = build_finetunejob(spec=spec) | {"status": before.to_json()}
    request = build_request(build_key(), body, datetime.fromisoformat(NOW))
    ended = _build_ended_pod(143, "Preempted")
    observed = ObservedState(run_policy=request.run_policy, orphaned_pods=(ended,))
    assert not plan(request, observed, Settings()).create_job
    status = _compute(request, observed)
    assert (status.reason, status.active_seconds) == ("BudgetExhausted", 5600)
    assert "run for 5600 seconds, and spec.budget.activeSeconds is 5000" in status.conditions[0].message
