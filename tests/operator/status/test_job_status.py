"""The status that follows from the observed state, and how it changes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.run_state_table import (
    JOB_COMPLETE,
    JOB_POD_FAILURE_POLICY,
    LATER,
    META,
    NOW,
    RUNNING_STATE,
    StateCase,
    build_state_cases,
    build_termination_message,
)

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.pod import parse_checkpoint_record, parse_outcome
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status, is_terminal
from finetune_trainer.contract import ExitCode, Progress, Reason, Stage

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders


def _get_conditions(status: FineTuneJobStatus) -> dict[str, str]:
    return {condition.type: condition.status for condition in status.conditions}


STATE_CASES = build_state_cases()


@pytest.mark.parametrize("case", STATE_CASES.values(), ids=STATE_CASES)
def test_job_status_each_state_has_phase_conditions_and_reason(case: StateCase) -> None:
    status = compute_status(META, FineTuneJobStatus(), case.observed, NOW)
    assert (status.phase, _get_conditions(status)) == case.phase_and_conditions
    assert {condition.reason for condition in status.conditions} == {case.reason}
    headline, *others = status.conditions
    assert case.message_part in headline.message
    assert all(condition.message == f"See the condition {headline.type}." for condition in others)
    assert status.reason == case.reason
    assert bool(status.completion_time) == is_terminal(status)


@pytest.mark.parametrize("case", STATE_CASES.values(), ids=STATE_CASES)
def test_job_status_terminal_never_changes(case: StateCase) -> None:
    status = compute_status(META, FineTuneJobStatus(), case.observed, NOW)
    if is_terminal(status):
        assert all(compute_status(META, status, other.observed, LATER) == status for other in STATE_CASES.values())


def test_job_status_terminal_follows_generation(build: type[Builders]) -> None:
    status = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(JOB_COMPLETE)), NOW)
    changed = META.model_copy(update={"generation": 2})
    assert compute_status(changed, status, ObservedState(), LATER).observed_generation == 2


@pytest.mark.parametrize("case", STATE_CASES.values(), ids=STATE_CASES)
def test_job_status_same_observation_is_idempotent(case: StateCase) -> None:
    once = compute_status(META, FineTuneJobStatus(), case.observed, NOW)
    assert compute_status(META, once, case.observed, LATER) == once


def test_job_status_transition_time_changes_only_with_condition(build: type[Builders]) -> None:
    pending = compute_status(META, FineTuneJobStatus(), ObservedState(), NOW)
    queued = compute_status(META, pending, ObservedState(build.job(suspend=True)), LATER)
    assert queued.conditions[0].last_transition_time == NOW
    running = ObservedState(build.job(), (build.pod(state=RUNNING_STATE, phase="Running"),))
    assert compute_status(META, queued, running, LATER).conditions[0].last_transition_time == LATER


STAGE_MESSAGES = {
    "WaitingForOutput": "is waiting for another run to release spec.output.uri (at most 120 s)",
    "Downloading": "is downloading the model and the data",
    "Training": "is training",
    "Evaluating": "is evaluating the model",
}


@pytest.mark.parametrize(("stage", "activity"), STAGE_MESSAGES.items())
def test_job_status_message_names_stage(build: type[Builders], stage: str, activity: str) -> None:
    progress = Progress(stage=Stage(stage), percentage=5, last_update_time=NOW)
    running = ObservedState(build.job(), (build.pod(state=RUNNING_STATE, phase="Running"),), progress=progress)
    status = compute_status(META, FineTuneJobStatus(), running, NOW)
    assert status.conditions[0].message == f"Pod bot-1 {activity}."
    without_progress = dataclasses.replace(running, progress=None)
    assert compute_status(META, status, without_progress, NOW) == status  # One failed request changes nothing.


def test_job_status_new_pod_without_progress_names_no_stage(build: type[Builders]) -> None:
    progress = Progress(stage="Training", percentage=5, last_update_time=NOW)
    first = build.pod(state=RUNNING_STATE, phase="Running")
    status = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(), (first,), progress), NOW)
    ended = build.pod(state=build.terminated(137), phase="Failed")
    second_pod = build.pod("bot-2", {"running": {"startedAt": LATER}}, "Running", created=LATER)
    status = compute_status(META, status, ObservedState(build.job(), (ended, second_pod)), LATER)
    assert status.conditions[0].message == "Pod bot-2 is running."
    loading = Progress(stage="Loading", last_update_time=LATER)
    status = compute_status(META, status, ObservedState(build.job(), (ended, second_pod), loading), LATER)
    assert status.conditions[0].message == "Pod bot-2 is loading the model."


def test_job_status_next_attempt_has_no_stage_of_the_one_before(build: type[Builders]) -> None:
    """The clock of its node may be behind, and its progress may never be read."""
    progress = Progress(stage="Evaluating", percentage=57, last_update_time=LATER)
    first = build.pod(state=RUNNING_STATE, phase="Running")
    status = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(), (first,), progress), LATER)
    assert status.progress
    assert (status.progress.completed, status.progress.estimated_remaining) == ("57%", "evaluating")
    ended = build.pod(state=build.terminated(137), phase="Failed")
    second = build.pod("bot-2", {"running": {"startedAt": "2026-11-23T08:30:00Z"}}, "Running", created=LATER)
    for _ in range(2):
        status = compute_status(META, status, ObservedState(build.job(), (ended, second)), LATER)
        assert status.conditions[0].message == "Pod bot-2 is running."
        assert status.progress
        assert (status.progress.stage, status.progress.estimated_remaining) == (None, None)
        assert (status.progress.completed, status.attempts) == ("57%", 2)


def test_job_status_duration_is_from_first_start_to_last_change(build: type[Builders]) -> None:
    running = ObservedState(build.job(), (build.pod(state=RUNNING_STATE, phase="Running"),))
    status = compute_status(META, FineTuneJobStatus(), running, "2026-11-23T08:00:40Z")
    assert status.duration == "40s"
    assert compute_status(META, status, running, LATER) == status  # time alone does not change a status
    progress = Progress(stage="Training", step=1, last_update_time=LATER)
    status = compute_status(META, status, dataclasses.replace(running, progress=progress), LATER)
    assert status.duration == "1h0m"
    complete = ObservedState(build.job(JOB_COMPLETE))  # at NOW, by the clock of the Job controller
    assert compute_status(META, status, complete, LATER).duration == "0s"


KILLED = {
    "killed": (
        "Error",
        "BackoffLimitExceeded",
        "The last attempt exited with code 137 (Error) and wrote no termination message.",
    ),
    "out of memory": ("OOMKilled", "OOMKilled", "The last attempt exceeded its memory limit. Raise spec.compute"),
}


@pytest.mark.parametrize(("container_reason", "reason", "message"), KILLED.values(), ids=KILLED)
def test_job_status_killed_attempt_keeps_reason_with_checkpoint_record(
    build: type[Builders], container_reason: str, reason: str, message: str
) -> None:
    record = json.dumps({"checkpoint": {"step": 5, "time": NOW, "invented": 1}, "invented": 1}) + " " * 20
    job = build.job({"FailureTarget": ("BackoffLimitExceeded", "x"), "Failed": ("BackoffLimitExceeded", "x")})
    bare, with_record = (
        compute_status(META, FineTuneJobStatus(), ObservedState(job, (build.pod(state=state, phase="Failed"),)), NOW)
        for state in (build.terminated(137, "", container_reason), build.terminated(137, record, container_reason))
    )
    assert (
        {condition.reason for condition in with_record.conditions}
        == {condition.reason for condition in bare.conditions}
        == {reason}
    )
    assert message in bare.conditions[0].message
    assert with_record.conditions[0].message == bare.conditions[0].message + " A checkpoint of step 5 is stored."
    assert (with_record.last_checkpoint_step, with_record.result, with_record.backend) == (5, None, None)


FORGED_RECORDS = [
    "", "null", "[]", '{"checkpoint":null}', '{"checkpoint":{"step":5}}', '{"checkpoint":{"step":-1,"time":"t"}}',
    '{"checkpoint":{"step":1e999,"time":"t"}}', '{"checkpoint":{"step":5,"time":"' + "t" * 65 + '"}}',
    '{"checkpoint":{"step":5,"time":"t"}}' + " " * 4096,
]  # fmt: skip


@pytest.mark.parametrize("text", FORGED_RECORDS)
def test_parse_record_malformed_returns_none(text: str) -> None:
    assert parse_checkpoint_record(text) is None


def test_job_status_outcome_fields_are_copied(build: type[Builders]) -> None:
    dataset = {"rows": 3, "kept": 2, "rejected": {"overlength": 1}, "tokens": 9, "supervisedTokens": 4, "digest": "d"}
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r", "metrics": {"trainLoss": 0.5}}
    message = build_termination_message(
        "Completed", dataset=dataset, result=result, backend="unsloth", modelCache="Hit"
    )
    pod = build.pod(state=build.terminated(0, message), phase="Succeeded")
    status = compute_status(
        META, FineTuneJobStatus(), ObservedState(build.job(JOB_COMPLETE, succeeded=1), (pod,)), NOW
    ).to_json()
    assert status["dataset"].items() >= dataset.items()
    assert status["modelCache"] == "Hit"
    assert (status["result"], status["backend"]) == (result, "unsloth")
    assert (status["attempts"], status["startTime"], status["jobName"]) == (1, NOW, "bot")
    assert status["progress"] == {
        "stage": "Done", "percentage": 100, "completed": "100%", "lastUpdateTime": NOW
    }  # fmt: skip


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.exit_code is ExitCode.PERMANENT])
def test_job_status_permanent_failure_keeps_reason_and_message_of_run(build: type[Builders], reason: Reason) -> None:
    message = "the loss is 2.5, but the cross-entropy of the logits is 0.5; use another training.backend"
    pod = build.pod(state=build.terminated(42, build_termination_message(reason, message)), phase="Failed")
    status = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(JOB_POD_FAILURE_POLICY), (pod,)), NOW)
    assert status.phase == "Failed"
    assert {condition.reason for condition in status.conditions} == {str(reason)}
    assert message in status.conditions[0].message


def test_job_status_failed_run_has_no_result(build: type[Builders]) -> None:
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r"}
    pod = build.pod(state=build.terminated(42, build_termination_message("DiskFull", result=result)), phase="Failed")
    assert (
        compute_status(META, FineTuneJobStatus(), ObservedState(build.job(JOB_POD_FAILURE_POLICY), (pod,)), NOW).result
        is None
    )


LOGS = {"logURI": "s3://b/k/.failed/0123456789ab/run.log"}


def test_job_status_failed_run_has_log_uri(build: type[Builders]) -> None:
    message = build_termination_message("DataInvalid", **LOGS)
    pod = build.pod(state=build.terminated(42, message), phase="Failed")
    observed = ObservedState(build.job(JOB_POD_FAILURE_POLICY), (pod,))
    assert compute_status(META, FineTuneJobStatus(), observed, NOW).to_json()["logURI"] == LOGS["logURI"]


def test_job_status_next_attempt_keeps_log_uri_until_result_is_published(build: type[Builders]) -> None:
    pod = build.pod(state=build.terminated(1, build_termination_message("InternalError", **LOGS)), phase="Failed")
    retrying = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(failed=1), (pod,)), NOW)
    second = build.pod("bot-2", RUNNING_STATE, "Running", created=LATER)
    running = compute_status(META, retrying, ObservedState(build.job(failed=1), (second,)), LATER)
    assert retrying.log_uri == running.log_uri == LOGS["logURI"]
    for log_uri in ("s3://b/k/run.log", None):
        message = build_termination_message("Completed", **({"logURI": log_uri} if log_uri else {}))
        published = build.pod("bot-2", build.terminated(0, message), "Succeeded", created=LATER)
        observed = ObservedState(build.job(JOB_COMPLETE, failed=1, succeeded=1), (published,))
        assert compute_status(META, running, observed, LATER).log_uri == log_uri


def test_job_status_between_attempts_keeps_progress_without_estimate(build: type[Builders]) -> None:
    progress = Progress(stage="Training", percentage=40, estimated_remaining_seconds=4321, last_update_time=NOW)
    pod = build.pod(state=RUNNING_STATE, phase="Running")
    running = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(), (pod,), progress), NOW)
    assert running.progress
    assert running.progress.estimated_remaining == "1h12m"
    without_progress = compute_status(META, running, ObservedState(build.job(), (pod,)), NOW)
    failed = compute_status(
        META, without_progress, ObservedState(build.job(), (build.pod(phase="Failed"),), progress), NOW
    )
    assert failed.progress
    assert (failed.progress.percentage, failed.progress.estimated_remaining) == (40, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (4321, "1h12m"), (90_000, "1d1h")]
)
def test_job_status_estimated_remaining_is_formatted(build: type[Builders], seconds: int, text: str) -> None:
    progress = Progress(stage="Training", estimated_remaining_seconds=seconds, last_update_time=NOW)
    observed = ObservedState(build.job(), (build.pod(state=RUNNING_STATE, phase="Running"),), progress)
    status = compute_status(META, FineTuneJobStatus(), observed, NOW)
    assert status.progress
    assert status.progress.estimated_remaining == text


def test_job_status_attempts_and_start_time_never_decrease(build: type[Builders]) -> None:
    before = FineTuneJobStatus(attempts=3, start_time=NOW)
    later = build.pod(state={"running": {"startedAt": LATER}}, phase="Running")
    status = compute_status(META, before, ObservedState(build.job(failed=1), (later,)), LATER)
    assert (status.attempts, status.start_time) == (3, NOW)


def test_job_status_long_message_is_truncated(build: type[Builders]) -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "x" * 9999}
    status = compute_status(
        META, FineTuneJobStatus(), ObservedState(build.job(), (build.pod(conditions=[unscheduled]),)), NOW
    )
    assert len(status.conditions[0].message) == 4096


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "7", '"Completed"', "{}", "\x00", "{" * 4000,
        '{"reason":"Completed"}', '{"reason":"Completed","message":7}',
        '{"reason":"Completed","message":"x","progress":{"stage":"Done","lastUpdateTime":"t","step":1e999}}',
        '{"reason":"Completed","message":"x","progress":{"stage":"Done","lastUpdateTime":"t","loss":NaN}}',
        '{"reason":"Completed","message":"\\ud800"}',
        build_termination_message(
            "Completed", "x", dataset={"rows": 10**30, "kept": 1, "tokens": 1, "supervisedTokens": 1, "digest": ""}),
    ],
)  # fmt: skip
def test_parse_outcome_malformed_returns_none(text: str) -> None:
    assert parse_outcome(text) is None


def test_parse_outcome_unknown_fields_are_ignored() -> None:
    outcome = parse_outcome(build_termination_message("Completed", "x", invented=1))
    assert outcome
    assert outcome.message == "x"


def test_job_status_progress_unchanged_is_stalled_until_it_moves(build: type[Builders]) -> None:
    pod = build.pod(state=RUNNING_STATE, phase="Running")
    policy = RunPolicy(stall_seconds=1200)

    def observe(previous: FineTuneJobStatus, minute: int, step: int | None) -> FineTuneJobStatus:
        now = f"2026-11-23T08:{minute:02}:00Z"
        progress = None if step is None else Progress(stage="Training", step=step, last_update_time=now)
        return compute_status(META, previous, ObservedState(build.job(), (pod,), progress, run_policy=policy), now)

    moved = observe(FineTuneJobStatus(), 1, 5)
    assert observe(moved, 10, 5) == moved
    stalled = observe(moved, 12, 5)
    assert stalled.conditions[0].reason == "ProgressStalled"
    assert "2026-11-23T08:01:00Z" in stalled.conditions[0].message
    assert (stalled.phase, observe(stalled, 13, 5)) == ("Running", stalled)
    assert observe(stalled, 14, 6).conditions[0].reason == "PodRunning"
    silent = observe(FineTuneJobStatus(), 1, None)
    assert observe(silent, 50, None).conditions[0].reason == "PodRunning"  # The progress is unknown.
