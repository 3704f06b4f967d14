"""Deadlines of a run, with pods that are pending and with clocks that differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.controller.finetunejob.planning import build_job_patch
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
RUNNING, PENDING, ENDED = "running", "pending", "ended"
FAILING = [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]


def _timestamp_at(minute: int) -> str:
    return f"2026-11-23T08:{minute:02}:00Z"


def _build_pod(build: type[Builders], activity: str) -> dict[str, Any]:
    states = {RUNNING: {"running": {"startedAt": _timestamp_at(0)}}, PENDING: None, ENDED: build.terminated(143)}
    return build.pod(state=states[activity], phase={RUNNING: "Running", PENDING: "Pending", ENDED: "Failed"}[activity])


class ActiveDeadlineCase(NamedTuple):
    job_deadline: int | None
    activity: str
    job_conditions: list[dict[str, str]]
    spec_patch: dict[str, Any]


ACTIVE_DEADLINES = {
    "trainer starts": ActiveDeadlineCase(None, RUNNING, [], {"activeDeadlineSeconds": 3600}),
    "trainer running": ActiveDeadlineCase(3600, RUNNING, [], {}),
    "next pod pending": ActiveDeadlineCase(3600, PENDING, [], {"activeDeadlineSeconds": None}),
    "attempt ended, no next pod": ActiveDeadlineCase(3600, ENDED, [], {"activeDeadlineSeconds": None}),
    "deadline exceeded": ActiveDeadlineCase(3600, ENDED, FAILING, {}),
}


@pytest.mark.parametrize("case", ACTIVE_DEADLINES.values(), ids=ACTIVE_DEADLINES)
def test_job_patch_active_deadline_set_only_while_trainer_runs(build: type[Builders], case: ActiveDeadlineCase) -> None:
    job = build.job(startTime=_timestamp_at(0))
    job["status"]["conditions"] = case.job_conditions
    job["spec"] |= {"backoffLimit": 3} | ({"activeDeadlineSeconds": case.job_deadline} if case.job_deadline else {})
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    status = FineTuneJobStatus(active_seconds=0, accounted_time=_timestamp_at(0))
    observed = ObservedState(
        job, (_build_pod(build, case.activity),), run_policy=RunPolicy(active_deadline_seconds=3600)
    )
    assert build_job_patch(observed, status).get("spec", {}) == case.spec_patch


STARTS = {
    "with the Job": (10, 10, "Retrying"),
    "before the Job, by the slow clock of the node": (10, 9, "Retrying"),
    "before the Job was resumed": (8, 9, "StartupDeadlineExceeded"),
}


@pytest.mark.parametrize(("created_minute", "started_minute", "reason"), STARTS.values(), ids=STARTS)
def test_job_status_trainer_ran_with_skewed_clock_counts_as_started(
    build: type[Builders], created_minute: int, started_minute: int, reason: str
) -> None:
    job = build.job(startTime=_timestamp_at(10))
    terminated = {
        "exitCode": 75,
        "startedAt": _timestamp_at(started_minute),
        "finishedAt": _timestamp_at(12),
        "message": "",
        "reason": "Error",
    }
    pod = build.pod(state={"terminated": terminated}, phase="Failed", created=_timestamp_at(created_minute))
    observed = ObservedState(job, (pod,), run_policy=RunPolicy(startup_deadline_seconds=60))
    assert compute_status(META, FineTuneJobStatus(), observed, _timestamp_at(40)).conditions[0].reason == reason


def test_job_status_pod_is_gone_trainer_counts_as_started(build: type[Builders]) -> None:
    """Its start is by the slow clock of its node, and its creation by that of the API server."""
    policy = RunPolicy(startup_deadline_seconds=60)
    before = FineTuneJobStatus(
        attempts=1, last_attempt_time=_timestamp_at(9), last_attempt_creation_time=_timestamp_at(10)
    )
    observed = ObservedState(build.job(startTime=_timestamp_at(10)), run_policy=policy)
    assert compute_status(META, before, observed, _timestamp_at(40)).reason == "JobCreated"
    unknown = before.model_copy(update={"last_attempt_creation_time": None})
    assert compute_status(META, unknown, observed, _timestamp_at(40)).reason == "StartupDeadlineExceeded"


def test_job_patch_any_pod_running_keeps_active_deadline(build: type[Builders]) -> None:
    """The other pods of the attempt run and wait for the pod with index 0, which is replaced."""
    job = build.job(startTime=_timestamp_at(0))
    job["spec"] |= {"backoffLimit": 3, "activeDeadlineSeconds": 3600}
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    other_pod = _build_pod(build, RUNNING)
    other_pod["metadata"] |= {"name": "bot-1-x", "annotations": {"batch.kubernetes.io/job-completion-index": "1"}}
    observed = ObservedState(
        job, (_build_pod(build, PENDING), other_pod), run_policy=RunPolicy(active_deadline_seconds=3600)
    )
    assert build_job_patch(observed, FineTuneJobStatus(active_seconds=0, accounted_time=_timestamp_at(0))) == {}
