"""Deadlines count what they say and nothing else, whatever runs, waits, or has a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJobStatus, ObjectMeta
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.controller.job_patch import build_job_patch
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status

if TYPE_CHECKING:
    from tests.operator.bodies import Build

META = ObjectMeta(name="bot", namespace="team", uid="uid-bot", generation=1)
RUNS, PENDS, ENDED = "runs", "pends", "has ended"
FAILING = [{"type": "FailureTarget", "status": "True", "reason": "DeadlineExceeded"}]


def _at(minute: int) -> str:
    return f"2026-11-23T08:{minute:02}:00Z"


def _pod(build: type[Build], what: str) -> dict[str, Any]:
    states = {RUNS: {"running": {"startedAt": _at(0)}}, PENDS: None, ENDED: build.ended(143)}
    return build.pod(state=states[what], phase={RUNS: "Running", PENDS: "Pending", ENDED: "Failed"}[what])


# activeDeadlineSeconds of the Job, what its pod does, the Job's conditions, and what is changed
LIMITS: dict[str, tuple[int | None, str, list[dict[str, str]], dict[str, Any]]] = {
    "a trainer starts": (None, RUNS, [], {"activeDeadlineSeconds": 3600}),
    "it runs": (3600, RUNS, [], {}),
    "it has ended, the next one pends": (3600, PENDS, [], {"activeDeadlineSeconds": None}),
    "it has ended, there is no next one": (3600, ENDED, [], {"activeDeadlineSeconds": None}),
    "it has ended because of this": (3600, ENDED, FAILING, {}),
}


@pytest.mark.parametrize(("limit", "pod", "conditions", "change"), LIMITS.values(), ids=LIMITS)
def test_the_job_counts_only_while_a_trainer_runs(
    build: type[Build], limit: int | None, pod: str, conditions: list[dict[str, str]], change: dict[str, Any]
) -> None:
    job = build.job(startTime=_at(0))
    job["status"]["conditions"] = conditions
    job["spec"] |= {"backoffLimit": 3} | ({"activeDeadlineSeconds": limit} if limit else {})
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    status = FineTuneJobStatus(active_seconds=0, accounted_time=_at(0))
    seen = ObservedState(job, (_pod(build, pod),), run_policy=RunPolicy(active_deadline_seconds=3600))
    assert build_job_patch(seen, status).get("spec", {}) == change


# minute at which the pod was created, that at which its trainer started by its node's clock, and the reason later
STARTS = {
    "as the Job did": (10, 10, "Retrying"),
    "earlier, by a clock that is slow": (10, 9, "Retrying"),
    "before a queue let the Job go on": (8, 9, "StartupDeadlineExceeded"),
}


@pytest.mark.parametrize(("created", "minute", "reason"), STARTS.values(), ids=STARTS)
def test_a_trainer_that_ran_has_started_whatever_its_nodes_clock_said(
    build: type[Build], created: int, minute: int, reason: str
) -> None:
    job = build.job(startTime=_at(10))
    end = {"exitCode": 75, "startedAt": _at(minute), "finishedAt": _at(12), "message": "", "reason": "Error"}
    pod = build.pod(state={"terminated": end}, phase="Failed", created=_at(created))
    seen = ObservedState(job, (pod,), run_policy=RunPolicy(startup_deadline_seconds=60))
    assert compute_status(META, FineTuneJobStatus(), seen, _at(40)).conditions[0].reason == reason


def test_the_job_counts_as_long_as_any_pod_of_several_runs(build: type[Build]) -> None:
    """The leader is replaced and pends, and the others hold their GPUs and wait for it."""
    job = build.job(startTime=_at(0))
    job["spec"] |= {"backoffLimit": 3, "activeDeadlineSeconds": 3600}
    job["metadata"]["labels"] = {"finetune.dev/job": "bot"}
    other = _pod(build, RUNS)
    other["metadata"] |= {"name": "bot-1-x", "annotations": {"batch.kubernetes.io/job-completion-index": "1"}}
    seen = ObservedState(job, (_pod(build, PENDS), other), run_policy=RunPolicy(active_deadline_seconds=3600))
    assert build_job_patch(seen, FineTuneJobStatus(active_seconds=0, accounted_time=_at(0))) == {}
