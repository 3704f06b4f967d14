"""The plan of a reconcile: which writes follow from what is observed."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import pytest
from tests.support.operator.builders import (
    NOW,
    build_finetunejob,
    build_job,
    build_key,
    build_pod,
    build_terminated_state,
)

from finetune_operator.api import Condition, FineTuneJobStatus
from finetune_operator.api.objects import Body
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.controller.finetunejob.planning import Changes, compute_requeue_after, plan, plan_follow_up
from finetune_operator.controller.finetunejob.request import ReconcileRequest, build_request
from finetune_operator.observed.state import ObservedState
from finetune_operator.policy.limits import Bounds
from finetune_operator.policy.profiles import Profiles
from finetune_operator.settings import Settings

SUSPENDED = {"suspend": True}
TWO_NODES = {"compute": {"nodes": 2}}
ENDED_POD = build_pod(state=build_terminated_state(1), phase="Failed")
RUNNING_POD = build_pod(state={"running": {"startedAt": NOW}}, phase="Running")
DELETED_JOB = {**build_job(), "metadata": {**build_job()["metadata"], "deletionTimestamp": NOW}}
FINISHED_JOB = build_job({"Complete": ("CompletionsReached", "")})
FINISHING_JOB = build_job({"FailureTarget": ("BackoffLimitExceeded", "")})
FAILED_STATUS = FineTuneJobStatus(
    conditions=[Condition(type="Failed", status="True", reason="DataInvalid", last_transition_time=NOW)],
    completion_time=NOW,
)


def _build_request(
    spec: Body | None = None, status: FineTuneJobStatus | None = None, now: str = NOW
) -> ReconcileRequest:
    body = build_finetunejob(spec=spec)
    if status:
        body["status"] = status.to_json()
    return build_request(build_key(), body, datetime.fromisoformat(now))


class PlanCase(NamedTuple):
    """A spec, the observed objects, and the names of the planned writes."""

    spec: Body
    observed: ObservedState
    writes: set[str]


PLAN_CASES = {
    "no Job": PlanCase({}, ObservedState(), {"create_job"}),
    "no Job, suspended": PlanCase(SUSPENDED, ObservedState(), set()),
    "pod of an earlier Job": PlanCase({}, ObservedState(terminating_pod="bot-7"), {"blocked"}),
    "pod of an earlier Job, suspended": PlanCase(SUSPENDED, ObservedState(terminating_pod="bot-7"), set()),
    "invalid spec": PlanCase({"training": {"epochs": -1}}, ObservedState(), {"blocked"}),
    "invalid run policy": PlanCase({"suspend": "false"}, ObservedState(), {"blocked"}),
    "outside the policy": PlanCase({"compute": {"gpusPerNode": 9}}, ObservedState(), {"blocked", "adopt_job"}),
    "outside the policy, with a Job": PlanCase({"compute": {"gpusPerNode": 9}}, ObservedState(build_job()), set()),
    "running Job": PlanCase({}, ObservedState(build_job(), (RUNNING_POD,)), set()),
    "running Job, suspended": PlanCase(SUSPENDED, ObservedState(build_job(), (RUNNING_POD,)), {"delete_job"}),
    "deleted Job, suspended": PlanCase(SUSPENDED, ObservedState(DELETED_JOB, (RUNNING_POD,)), set()),
    "finished Job, suspended": PlanCase(SUSPENDED, ObservedState(FINISHED_JOB, (ENDED_POD,)), set()),
    "finishing Job, suspended": PlanCase(SUSPENDED, ObservedState(FINISHING_JOB, (ENDED_POD,)), set()),
    "one node between attempts": PlanCase({}, ObservedState(build_job(), (ENDED_POD,)), set()),
    "two nodes between attempts": PlanCase(TWO_NODES, ObservedState(build_job(), (ENDED_POD,)), {"ensure_service"}),
    "two nodes in an attempt": PlanCase(TWO_NODES, ObservedState(build_job(), (RUNNING_POD,)), set()),
    "two nodes before the first attempt": PlanCase(TWO_NODES, ObservedState(build_job()), set()),
    "two nodes, finishing Job": PlanCase(TWO_NODES, ObservedState(FINISHING_JOB, (ENDED_POD,)), set()),
}


CANCELLED = {"cancel": True}
TERMINATING_POD = {
    **RUNNING_POD,
    "metadata": {**RUNNING_POD["metadata"], "deletionTimestamp": "2026-11-23T08:02:00Z"},
}
SUCCEEDING_POD = build_pod(state=build_terminated_state(0), phase="Running")
DYING_POD = {**RUNNING_POD, "metadata": {**RUNNING_POD["metadata"], "deletionTimestamp": "2026-11-23T08:00:01Z"}}
PLAN_CASES |= {
    "cancelled": PlanCase(CANCELLED, ObservedState(), set()),
    "running Job, cancelled": PlanCase(
        CANCELLED, ObservedState(build_job(), (RUNNING_POD,)), {"delete_job", "kill_pods"}
    ),
    "deleted Job, cancelled": PlanCase(CANCELLED, ObservedState(DELETED_JOB, (TERMINATING_POD,)), {"kill_pods"}),
    "deleted Job, cancelled, pod is dying": PlanCase(CANCELLED, ObservedState(DELETED_JOB, (DYING_POD,)), set()),
    "pod of a suspended run, cancelled": PlanCase(
        CANCELLED, ObservedState(orphaned_pods=(TERMINATING_POD,)), {"kill_pods"}
    ),
    "finishing Job, cancelled": PlanCase(CANCELLED, ObservedState(FINISHING_JOB, (RUNNING_POD,)), {"kill_pods"}),
    "completing Job, cancelled": PlanCase(CANCELLED, ObservedState(build_job(), (SUCCEEDING_POD,)), set()),
}


def _list_writes(changes: Changes) -> set[str]:
    return {name for name, value in changes._asdict().items() if value}


@pytest.mark.parametrize("case", PLAN_CASES.values(), ids=PLAN_CASES)
def test_plan_observed_state_gives_expected_writes(case: PlanCase) -> None:
    changes = plan(_build_request(case.spec), case.observed, Settings(bounds=Bounds(max_gpus=8)))
    assert _list_writes(changes) == case.writes


@pytest.mark.parametrize("case", PLAN_CASES.values(), ids=PLAN_CASES)
def test_plan_terminal_status_gives_no_writes(case: PlanCase) -> None:
    assert plan(_build_request(case.spec, FAILED_STATUS), case.observed, Settings()) == Changes()


def test_plan_job_to_create_is_owned_by_finetunejob() -> None:
    job = plan(_build_request(), ObservedState(), Settings()).create_job
    assert job
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid-bot"


BLOCKED_CASES: dict[str, tuple[Body, ObservedState, str, bool]] = {
    "pod of an earlier Job": ({}, ObservedState(terminating_pod="bot-7"), "bot-7", False),
    "invalid spec": ({"training": {"epochs": -1}}, ObservedState(), "spec.training.epochs", True),
    "invalid run policy": ({"suspend": "false"}, ObservedState(), "suspend", True),
    "outside the policy": ({"compute": {"gpusPerNode": 9}}, ObservedState(), "spec.compute", True),
}


@pytest.mark.parametrize(("spec", "observed", "part", "terminal"), BLOCKED_CASES.values(), ids=BLOCKED_CASES)
def test_plan_blocked_message_names_cause(spec: Body, observed: ObservedState, part: str, terminal: bool) -> None:
    blocked = plan(_build_request(spec), observed, Settings(bounds=Bounds(max_gpus=8))).blocked
    assert blocked
    assert part in blocked.message
    assert blocked.terminal is terminal


PROFILES = Profiles.model_validate({"profiles": {"a100": {}, "h100": {}}, "defaultProfile": "a100"})


def test_plan_profile_of_finetunejob_is_used() -> None:
    job = plan(_build_request({"compute": {"profile": "h100"}}), ObservedState(), Settings(), PROFILES).create_job
    assert job
    assert job["metadata"]["annotations"]["finetune.dev/profile"] == "h100"


def test_plan_missing_profile_waits_and_names_others() -> None:
    changes = plan(_build_request({"compute": {"profile": "b200"}}), ObservedState(), Settings(), PROFILES)
    assert _list_writes(changes) == {"blocked", "adopt_job"}
    assert changes.blocked
    assert not changes.blocked.terminal
    assert "there is no compute profile b200; profiles: a100, h100." in changes.blocked.message


def test_plan_profile_outside_bounds_fails_also_if_missing() -> None:
    settings = Settings(bounds=Bounds(allowed_profiles=["h100"]))
    blocked = plan(_build_request({"compute": {"profile": "b200"}}), ObservedState(), settings, PROFILES).blocked
    assert blocked
    assert blocked.terminal
    assert blocked.message == "spec.compute.profile: b200 is not allowed; allowed: h100, a100."


class FollowUpCase(NamedTuple):
    """The objects observed with the stored status, the planned writes, and the seconds until the next reconcile."""

    observed: ObservedState
    status: FineTuneJobStatus
    writes: set[str]
    requeue_after: float | None
    spec: Body | None = None
    now: str = NOW


LABELED_JOB = build_job()
LABELED_JOB["metadata"]["labels"] = {"finetune.dev/job": "bot"}
LABELED_JOB["spec"]["backoffLimit"] = RunPolicy().backoff_limit
UNLABELED_JOB = {**LABELED_JOB, "metadata": {**LABELED_JOB["metadata"], "labels": {}}}
TTL = {"ttlSecondsAfterFinished": 60}
EXPIRED = "2026-11-23T08:01:00Z"
FOLLOW_UP_CASES = {
    "no Job": FollowUpCase(ObservedState(), FineTuneJobStatus(), set(), None),
    "Job as desired": FollowUpCase(ObservedState(LABELED_JOB, (RUNNING_POD,)), FineTuneJobStatus(), set(), None),
    "Job without its label": FollowUpCase(
        ObservedState(UNLABELED_JOB, (RUNNING_POD,)), FineTuneJobStatus(), {"job_patch"}, None
    ),
    "failed, Job is gone": FollowUpCase(ObservedState(), FAILED_STATUS, set(), None),
    "failed, Job continues": FollowUpCase(ObservedState(LABELED_JOB), FAILED_STATUS, {"delete_job"}, None),
    "failed, Job is finished": FollowUpCase(ObservedState(FINISHED_JOB), FAILED_STATUS, set(), None),
    "failed, Job is being deleted": FollowUpCase(ObservedState(DELETED_JOB), FAILED_STATUS, set(), None),
    "before the TTL": FollowUpCase(ObservedState(), FAILED_STATUS, set(), 60.5, TTL),
    "after the TTL": FollowUpCase(ObservedState(), FAILED_STATUS, {"delete_finetunejob"}, None, TTL, EXPIRED),
    "after the TTL, Job continues": FollowUpCase(
        ObservedState(LABELED_JOB), FAILED_STATUS, {"delete_job", "delete_finetunejob"}, None, TTL, EXPIRED
    ),
}


CLAIM_JOB = {**LABELED_JOB, "metadata": {**LABELED_JOB["metadata"], "labels": {"finetune.dev/scratch-claim": "true"}}}
FINISHED_CLAIM_JOB = {**CLAIM_JOB, "status": FINISHED_JOB["status"]}
CLAIM_CASES = {
    "finished": (FINISHED_CLAIM_JOB, {"delete_job"}),
    "running": (CLAIM_JOB, {"delete_job"}),
    "being deleted": (
        {**FINISHED_CLAIM_JOB, "metadata": {**FINISHED_CLAIM_JOB["metadata"], "deletionTimestamp": NOW}},
        set(),
    ),
}


@pytest.mark.parametrize(("job", "writes"), CLAIM_CASES.values(), ids=CLAIM_CASES)
def test_follow_up_finished_run_deletes_job_with_claims(job: Body, writes: set[str]) -> None:
    assert _list_writes(plan_follow_up(_build_request(), ObservedState(job), FAILED_STATUS)) == writes


def _build_attempt(index: int, completion_index: str = "0") -> Body:
    start = f"2026-11-23T08:{index:02}:00Z"
    state = {"terminated": {"exitCode": 75, "startedAt": start, "finishedAt": f"2026-11-23T08:{index:02}:30Z"}}
    pod = build_pod(f"bot-{completion_index}-{index}", state, "Failed", created=start)
    pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": completion_index}
    return pod


EIGHT_ATTEMPTS = FineTuneJobStatus(
    attempts=8, last_attempt_time="2026-11-23T08:08:00Z", last_attempt_creation_time="2026-11-23T08:08:00Z"
)


def _build_running_pod(completion_index: str) -> Body:
    pod = _build_attempt(9, completion_index)
    pod["status"] = {"phase": "Running", "containerStatuses": RUNNING_POD["status"]["containerStatuses"]}
    return pod


def test_follow_up_few_ended_pods_are_kept() -> None:
    observed = ObservedState(LABELED_JOB, (_build_attempt(6), _build_attempt(7), _build_attempt(8)))
    assert plan_follow_up(_build_request(), observed, EIGHT_ATTEMPTS).delete_pods == []


@pytest.mark.parametrize(("job", "deleted"), [(CLAIM_JOB, range(1, 8)), (LABELED_JOB, range(1, 4))])
def test_follow_up_deletes_pods_of_attempts_before_the_last(job: Body, deleted: range) -> None:
    """Those of attempts that the status does not count yet are kept: they may have saved a checkpoint."""
    pods = tuple(_build_attempt(index, worker) for index in range(1, 9) for worker in "01")
    observed = ObservedState(job, (*pods, *map(_build_running_pod, "01")))
    changes = plan_follow_up(_build_request(), observed, EIGHT_ATTEMPTS)
    expected = {f"bot-{worker}-{index}" for index in deleted for worker in "01"}
    assert {pod["metadata"]["name"] for pod in changes.delete_pods} == expected


def test_follow_up_last_pod_of_a_worker_is_kept() -> None:
    """It may explain why the attempt of the pod with index 0 ended."""
    observed = ObservedState(CLAIM_JOB, (_build_attempt(7, "1"), _build_attempt(8), _build_running_pod("0")))
    assert plan_follow_up(_build_request(), observed, EIGHT_ATTEMPTS).delete_pods == []


@pytest.mark.parametrize("case", FOLLOW_UP_CASES.values(), ids=FOLLOW_UP_CASES)
def test_follow_up_status_gives_expected_writes_and_requeue(case: FollowUpCase) -> None:
    request = _build_request(case.spec, now=case.now)
    assert _list_writes(plan_follow_up(request, case.observed, case.status)) == case.writes
    assert compute_requeue_after(request, case.observed, case.status) == case.requeue_after
