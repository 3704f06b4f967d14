"""Deadlines count what they say and nothing else, whatever runs, waits, or has a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.controller.planning import build_job_patch
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
RUNNING, PENDING, ENDED = "runs", "pends", "has ended"
FAILING = [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]


def _timestamp_at(minute: int) -> str:
    return f"2026-11-23T08:{minute:02}:00Z"


def _build_pod(build: type[Builders], activity: str) -> dict[str, Any]:
    states = {RUNNING: {"running": {"startedAt": _timestamp_at(0)}}, PENDING: None, ENDED: build.terminated(143)}
    return build.pod(state=states[activity], phase={RUNNING: "Running", PENDING: "Pending", ENDED: "Failed"}[activity])


# activeDeadlineSeconds of the Job, what its pod does, the Job's conditions, and what is changed
LIMITS: dict[str, tuple[int | None, str, list[dict[str, str]], dict[str, Any]]] = {
    "a trainer starts": (None, RUNNING, [], {"activeDeadlineSeconds": 3600}),
    "it runs": (3600, RUNNING, [], {}),
    "it has ended, the next one pends": (3600, PENDING, [], {"activeDeadlineSeconds": None}),
    "it has ended, there is no next one": (3600, ENDED, [], {"activeDeadlineSeconds": None}),
    "it has ended because of this": (3600, ENDED, FAILING, {}),
}


@pytest.mark.parametrize(("limit", "pod", "conditions", "change"), LIMITS.values(), ids=LIMITS)
def test_job_patch_active_deadline_set_only_while_trainer_runs(
    build: type[Builders], limit: int | None, pod: str, conditions: list[dict[str, str]], change: dict[str, Any]
) -> None:
    job = build.job(startTime=_timestamp_at(0))
    job["status"]["conditions"] = conditions
    job["spec"] |= {"backoffLimit": 3} | ({"activeDeadlineSeconds": limit} if limit else {})
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    status = FineTuneJobStatus(active_seconds=0, accounted_time=_timestamp_at(0))
    observed = ObservedState(job, (_build_pod(build, pod),), run_policy=RunPolicy(active_deadline_seconds=3600))
    assert build_job_patch(observed, status).get("spec", {}) == change


# minute at which the pod was created, that at which its trainer started by its node's clock, and the reason later
STARTS = {
    "as the Job did": (10, 10, "Retrying"),
    "earlier, by a clock that is slow": (10, 9, "Retrying"),
    "before a queue let the Job go on": (8, 9, "StartupDeadlineExceeded"),
}


@pytest.mark.parametrize(("created", "minute", "reason"), STARTS.values(), ids=STARTS)
def test_job_status_trainer_ran_with_skewed_clock_counts_as_started(
    build: type[Builders], created: int, minute: int, reason: str
) -> None:
    job = build.job(startTime=_timestamp_at(10))
    terminated = {
        "exitCode": 75,
        "startedAt": _timestamp_at(minute),
        "finishedAt": _timestamp_at(12),
        "message": "",
        "reason": "Error",
    }
    pod = build.pod(state={"terminated": terminated}, phase="Failed", created=_timestamp_at(created))
    observed = ObservedState(job, (pod,), run_policy=RunPolicy(startup_deadline_seconds=60))
    assert compute_status(META, FineTuneJobStatus(), observed, _timestamp_at(40)).conditions[0].reason == reason


def test_job_patch_any_pod_running_keeps_active_deadline(build: type[Builders]) -> None:
    """The leader is replaced and pends, and the others hold their GPUs and wait for it."""
    job = build.job(startTime=_timestamp_at(0))
    job["spec"] |= {"backoffLimit": 3, "activeDeadlineSeconds": 3600}
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    other_pod = _build_pod(build, RUNNING)
    other_pod["metadata"] |= {"name": "bot-1-x", "annotations": {"batch.kubernetes.io/job-completion-index": "1"}}
    observed = ObservedState(
        job, (_build_pod(build, PENDING), other_pod), run_policy=RunPolicy(active_deadline_seconds=3600)
    )
    assert build_job_patch(observed, FineTuneJobStatus(active_seconds=0, accounted_time=_timestamp_at(0))) == {}
