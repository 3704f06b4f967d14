"""The status that follows from what is seen, and how it changes."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import pytest
from tests.operator.state_table import COMPLETED, LATER, META, NOW, POLICY, RUNNING, cases, word

from finetune_operator.api import FineTuneJobStatus
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.objects import parse_checkpoint_record, parse_outcome
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status, is_terminal
from finetune_trainer.contract import Progress, Stage

if TYPE_CHECKING:
    from tests.operator.bodies import Build


def _conditions(status: FineTuneJobStatus) -> dict[str, str]:
    return {each.type: each.status for each in status.conditions}


def test_each_state_has_its_phase_conditions_and_reason() -> None:
    for name, (seen, (phase, conditions), reason, message) in cases().items():
        status = compute_status(META, FineTuneJobStatus(), seen, NOW)
        assert (status.phase, _conditions(status)) == (phase, conditions), name
        assert {each.reason for each in status.conditions} == {reason}, name
        assert message in status.conditions[0].message, (name, status.conditions[0].message)
        assert bool(status.completion_time) == is_terminal(status), name


def test_a_terminal_status_never_flips() -> None:
    table = cases()
    for name, (seen, *_) in table.items():
        ended = compute_status(META, FineTuneJobStatus(), seen, NOW)
        if is_terminal(ended):
            assert all(compute_status(META, ended, other, LATER) == ended for other, *_ in table.values()), name


def test_a_terminal_status_follows_the_generation(build: type[Build]) -> None:
    ended = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(COMPLETED)), NOW)
    changed = META.model_copy(update={"generation": 2})
    assert compute_status(changed, ended, ObservedState(), LATER).observed_generation == 2


def test_the_same_again_is_the_same_status() -> None:
    for name, (seen, *_) in cases().items():
        once = compute_status(META, FineTuneJobStatus(), seen, NOW)
        assert compute_status(META, once, seen, LATER) == once, name


def test_transition_time_moves_only_with_the_status(build: type[Build]) -> None:
    pending = compute_status(META, FineTuneJobStatus(), ObservedState(), NOW)
    queued = compute_status(META, pending, ObservedState(build.job(suspend=True)), LATER)
    assert queued.conditions[0].last_transition_time == NOW
    running = ObservedState(build.job(), (build.pod(state=RUNNING, phase="Running"),))
    assert compute_status(META, queued, running, LATER).conditions[0].last_transition_time == LATER


DOING = {
    "WaitingForOutput": "waits until another run has released spec.output.uri (at most 120 s)",
    "Downloading": "downloads model and data",
    "Training": "trains",
    "Evaluating": "evaluates the model",
}


@pytest.mark.parametrize(("stage", "words"), DOING.items())
def test_what_a_pod_does_is_said(build: type[Build], stage: str, words: str) -> None:
    said = Progress(stage=Stage(stage), percentage=5, last_update_time=NOW)
    running = ObservedState(build.job(), (build.pod(state=RUNNING, phase="Running"),), progress=said)
    status = compute_status(META, FineTuneJobStatus(), running, NOW)
    assert status.conditions[0].message == f"Pod bot-1 {words}."
    unheard = dataclasses.replace(running, progress=None)
    assert compute_status(META, status, unheard, NOW) == status, "one question without an answer changes nothing"


def test_message_before_the_new_pod_was_heard_names_no_stage_of_the_attempt_before(build: type[Build]) -> None:
    said = Progress(stage="Training", percentage=5, last_update_time=NOW)
    first = build.pod(state=RUNNING, phase="Running")
    status = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(), (first,), said), NOW)
    ended = build.pod(state=build.ended(137), phase="Failed")
    again = build.pod("bot-2", {"running": {"startedAt": LATER}}, "Running", created=LATER)
    status = compute_status(META, status, ObservedState(build.job(), (ended, again)), LATER)
    assert status.conditions[0].message == "Pod bot-2 runs."
    loads = Progress(stage="Loading", last_update_time=LATER)
    status = compute_status(META, status, ObservedState(build.job(), (ended, again), loads), LATER)
    assert status.conditions[0].message == "Pod bot-2 loads the model."


KILLED = {
    "killed": ("Error", "BackoffLimitExceeded", "The last attempt ended with exit status 137 (Error) and left no word"),
    "out of memory": ("OOMKilled", "OOMKilled", "The last attempt used more memory than its limit; raise spec.compute"),
}


@pytest.mark.parametrize(("said", "reason", "message"), KILLED.values(), ids=KILLED)
def test_reason_of_a_killed_attempt_is_the_same_with_a_checkpoint_record(
    build: type[Build], said: str, reason: str, message: str
) -> None:
    record = json.dumps({"checkpoint": {"step": 5, "time": NOW, "invented": 1}, "invented": 1}) + " " * 20
    job = build.job({"FailureTarget": ("BackoffLimitExceeded", "x"), "Failed": ("BackoffLimitExceeded", "x")})
    bare, with_record = (
        compute_status(META, FineTuneJobStatus(), ObservedState(job, (build.pod(state=state, phase="Failed"),)), NOW)
        for state in (build.ended(137, "", said), build.ended(137, record, said))
    )
    assert {each.reason for each in with_record.conditions} == {each.reason for each in bare.conditions} == {reason}
    assert message in bare.conditions[0].message
    assert with_record.conditions[0].message == bare.conditions[0].message + " A checkpoint of step 5 is stored."
    assert (with_record.last_checkpoint_step, with_record.result, with_record.backend) == (5, None, None)


FORGED_RECORDS = [
    "", "null", "[]", '{"checkpoint":null}', '{"checkpoint":{"step":5}}', '{"checkpoint":{"step":-1,"time":"t"}}',
    '{"checkpoint":{"step":1e999,"time":"t"}}', '{"checkpoint":{"step":5,"time":"' + "t" * 65 + '"}}',
    '{"checkpoint":{"step":5,"time":"t"}}' + " " * 4096,
]  # fmt: skip


@pytest.mark.parametrize("text", FORGED_RECORDS)
def test_record_of_another_form_names_no_checkpoint(text: str) -> None:
    assert parse_checkpoint_record(text) is None


def test_what_the_outcome_reports_is_kept(build: type[Build]) -> None:
    dataset = {"rows": 3, "kept": 2, "rejected": {"overlength": 1}, "tokens": 9, "supervisedTokens": 4, "digest": "d"}
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r", "metrics": {"trainLoss": 0.5}}
    said = word("Completed", dataset=dataset, result=result, backend="unsloth")
    pod = build.pod(state=build.ended(0, said), phase="Succeeded")
    status = compute_status(
        META, FineTuneJobStatus(), ObservedState(build.job(COMPLETED, succeeded=1), (pod,)), NOW
    ).to_json()
    assert status["dataset"].items() >= dataset.items()
    assert (status["result"], status["backend"]) == (result, "unsloth")
    assert (status["attempts"], status["startTime"], status["jobName"]) == (1, NOW, "bot")
    assert status["progress"] == {"stage": "Done", "percentage": 100, "lastUpdateTime": NOW}


def test_a_failure_publishes_no_result(build: type[Build]) -> None:
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r"}
    pod = build.pod(state=build.ended(42, word("DiskFull", result=result)), phase="Failed")
    assert compute_status(META, FineTuneJobStatus(), ObservedState(build.job(POLICY), (pod,)), NOW).result is None


def test_progress_is_kept_between_attempts_without_its_estimate(build: type[Build]) -> None:
    progress = Progress(stage="Training", percentage=40, estimated_remaining_seconds=4321, last_update_time=NOW)
    pod = build.pod(state=RUNNING, phase="Running")
    running = compute_status(META, FineTuneJobStatus(), ObservedState(build.job(), (pod,), progress), NOW)
    assert running.progress
    assert running.progress.estimated_remaining == "1h12m"
    unasked = compute_status(META, running, ObservedState(build.job(), (pod,)), NOW)
    lost = compute_status(META, unasked, ObservedState(build.job(), (build.pod(phase="Failed"),), progress), NOW)
    assert lost.progress
    assert (lost.progress.percentage, lost.progress.estimated_remaining) == (40, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (4321, "1h12m"), (90_000, "1d1h")]
)
def test_the_estimate_reads_well(build: type[Build], seconds: int, text: str) -> None:
    progress = Progress(stage="Training", estimated_remaining_seconds=seconds, last_update_time=NOW)
    seen = ObservedState(build.job(), (build.pod(state=RUNNING, phase="Running"),), progress)
    status = compute_status(META, FineTuneJobStatus(), seen, NOW)
    assert status.progress
    assert status.progress.estimated_remaining == text


def test_attempts_and_start_never_go_back(build: type[Build]) -> None:
    before = FineTuneJobStatus(attempts=3, start_time=NOW)
    later = build.pod(state={"running": {"startedAt": LATER}}, phase="Running")
    status = compute_status(META, before, ObservedState(build.job(failed=1), (later,)), LATER)
    assert (status.attempts, status.start_time) == (3, NOW)


def test_long_messages_are_cut(build: type[Build]) -> None:
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
        word("Completed", "x", dataset={"rows": 10**30, "kept": 1, "tokens": 1, "supervisedTokens": 1, "digest": ""}),
    ],
)  # fmt: skip
def test_a_forged_outcome_is_none(text: str) -> None:
    assert parse_outcome(text) is None


def test_an_outcome_of_a_newer_trainer_is_read() -> None:
    outcome = parse_outcome(word("Completed", "x", invented=1))
    assert outcome
    assert outcome.message == "x"


def test_a_trainer_that_answers_and_does_not_move_is_stalled_until_it_moves(build: type[Build]) -> None:
    pod = build.pod(state=RUNNING, phase="Running")
    wanted = RunPolicy(stall_seconds=1200)

    def see(previous: FineTuneJobStatus, minute: int, step: int | None) -> FineTuneJobStatus:
        now = f"2026-11-23T08:{minute:02}:00Z"
        said = None if step is None else Progress(stage="Training", step=step, last_update_time=now)
        return compute_status(META, previous, ObservedState(build.job(), (pod,), said, run_policy=wanted), now)

    moved = see(FineTuneJobStatus(), 1, 5)
    assert see(moved, 10, 5) == moved
    stalled = see(moved, 12, 5)
    assert stalled.conditions[0].reason == "ProgressStalled"
    assert "2026-11-23T08:01:00Z" in stalled.conditions[0].message
    assert (stalled.phase, see(stalled, 13, 5)) == ("Running", stalled)
    assert see(stalled, 14, 6).conditions[0].reason == "PodRunning"
    silent = see(FineTuneJobStatus(), 1, None)
    assert see(silent, 50, None).conditions[0].reason == "PodRunning"  # it cannot be asked: nothing is known
