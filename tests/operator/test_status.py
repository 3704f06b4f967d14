"""The status table: what is seen, and the phase, conditions, reason and message that follow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJobStatus, Metadata, OperatorReason
from finetune_operator.children import Said, parse_outcome
from finetune_operator.seen import Obstacle, Seen
from finetune_operator.status import is_terminal, next_status
from finetune_operator.wanted import Wanted
from finetune_trainer.contract import OUTCOME_MAX_BYTES, Progress

if TYPE_CHECKING:
    from tests.operator.bodies import Build
    from tests.operator.conftest import Kstatus

META = Metadata(name="bot", namespace="team", uid="uid-bot", generation=1)
NOW, LATER = "2026-11-23T08:00:00Z", "2026-11-23T09:00:00Z"
RUNNING = {"running": {"startedAt": NOW}}
WAITING = ("Pending", {"Running": "False", "Reconciling": "True"})
STARTING = ("Pending", {"Running": "False"})
RUNS = ("Running", {"Running": "True"})
SUSPENDED = ("Suspended", {"Suspended": "True", "Running": "False"})
COMPLETE = ("Complete", {"Complete": "True", "Running": "False"})
FAILED = ("Failed", {"Failed": "True", "Running": "False", "Stalled": "True"})
BACKOFF = {"Failed": ("BackoffLimitExceeded", "Job has reached the specified backoff limit")}
POLICY = {"Failed": ("PodFailurePolicy", "Container trainer failed with exit code 42")}
COMPLETED = {"Complete": ("CompletionsReached", "")}


def _word(reason: str, message: str = "words", **more: Any) -> str:
    return json.dumps({"reason": reason, "message": message, **more})


def _cases(build: type[Build]) -> dict[str, tuple[Seen, tuple[str, dict[str, str]], str, str]]:
    job, pod, ended = build.job, build.pod, build.ended

    def attempt(
        code: int,
        text: str = "",
        why: str = "Error",
        conditions: dict[str, tuple[str, str]] | None = None,
        **status: Any,
    ) -> Seen:
        phase = "Succeeded" if code == 0 else "Failed"
        return Seen(job(conditions, **status), (pod(state=ended(code, text, why), phase=phase),))

    def waiting(reason: str, message: str = "words", warning: Said | None = None) -> Seen:
        state = {"waiting": {"reason": reason, "message": message}}
        return Seen(job(active=1), (pod(state=state),), warning=warning)

    def obstacle(reason: OperatorReason, final: bool = False) -> Seen:
        return Seen(obstacle=Obstacle(reason, "words", final))

    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    first = pod(state=ended(75, _word("StorageUnreachable", "no route")), phase="Failed")
    second = {"name": "bot-2", "created": LATER}
    deleted = job()
    deleted["metadata"]["deletionTimestamp"] = NOW
    lost = pod(state=RUNNING, phase="Running")
    lost["metadata"]["deletionTimestamp"] = "2026-11-23T07:58:00Z"
    leaving = pod(state=RUNNING, phase="Running")
    stop = Wanted(suspend=True)
    late = Wanted(startup_deadline=60)
    started = {"startTime": "2026-11-23T07:59:00Z"}
    over = {"Failed": ("DeadlineExceeded", "Job was active longer than specified deadline")}
    huge = _word("DataInvalid", "x" * OUTCOME_MAX_BYTES)
    gone = "OutcomeUnavailable"
    return {
        "nothing yet": (Seen(), WAITING, "JobPending", "about to be created"),
        "Job refused": (obstacle(OperatorReason.JOB_REFUSED), WAITING, "JobRefused", "words"),
        "earlier Job": (obstacle(OperatorReason.JOB_PENDING), WAITING, "JobPending", "words"),
        "foreign Job": (obstacle(OperatorReason.NAME_CONFLICT, True), FAILED, "NameConflict", "words"),
        "bad spec": (obstacle(OperatorReason.INVALID_SPEC, True), FAILED, "InvalidSpec", "words"),
        "bad spec but a Job": (
            Seen(job(), obstacle=Obstacle(OperatorReason.INVALID_SPEC, "", True)), STARTING, "JobCreated", "exists"),
        "Job, no pod": (Seen(job()), STARTING, "JobCreated", "exists"),
        "Job queued": (Seen(job(suspend=True)), STARTING, "Queued", "suspended"),
        "pod refused": (Seen(job(), warning=Said("FailedCreate", "exceeded quota")), STARTING, "JobRefused", "quota"),
        "Job being deleted": (Seen(deleted), STARTING, "JobPending", "deleted"),
        "pod without status": (Seen(job(), (pod(),)), STARTING, "PodPending", "starting"),
        "no node": (Seen(job(), (pod(conditions=[unscheduled]),)), STARTING, "Unschedulable", "0/3 nodes"),
        "pulling": (waiting("ContainerCreating", ""), STARTING, "PodPending", "bot-1"),
        "image": (waiting("ImagePullBackOff"), STARTING, "ImagePullFailed", "words"),
        "image, first try": (waiting("ErrImagePull"), STARTING, "ImagePullFailed", "words"),
        "image's name": (waiting("InvalidImageName"), STARTING, "ImagePullFailed", "words"),
        "config": (waiting("CreateContainerConfigError"), STARTING, "ContainerConfigError", "words"),
        "runtime": (waiting("RunContainerError"), STARTING, "ContainerConfigError", "words"),
        "missing Secret": (
            waiting("ContainerCreating", warning=Said("FailedMount", 'secret "k" not found')),
            STARTING, "ContainerConfigError", 'secret "k" not found'),
        "other warning": (
            waiting("ContainerCreating", warning=Said("NetworkNotReady", "cni")), STARTING, "PodPending", "cni"),
        "running": (Seen(job(active=1), (pod(state=RUNNING, phase="Running"),)), RUNS, "PodRunning", "bot-1"),
        "pod done, Job not": (attempt(0, _word("Completed")), RUNS, "PodRunning", "done"),
        "container done, pod not": (
            Seen(job(active=1), (pod(state=ended(0, _word("Completed")), phase="Running"),)),
            RUNS, "PodRunning", "done"),
        "container failed, pod not": (
            Seen(job(active=1), (pod(state=ended(75, _word("StorageUnreachable")), phase="Running"),)),
            STARTING, "Retrying", "StorageUnreachable"),
        "first attempt lost": (attempt(75, _word("StorageUnreachable")), STARTING, "Retrying", "StorageUnreachable"),
        "preempted": (attempt(143, _word("Preempted")), STARTING, "Retrying", "Preempted"),
        "evicted": (
            Seen(job(), (pod(phase="Failed", reason="Evicted", message="low on memory"),)),
            STARTING, "Retrying", "Evicted: low on memory"),
        "second attempt pending": (Seen(job(), (first, pod(**second))), STARTING, "Retrying", "no route"),
        "second attempt, no node": (
            Seen(job(), (first, pod(conditions=[unscheduled], **second))), STARTING, "Unschedulable", "no route"),
        "second attempt runs": (
            Seen(job(), (first, pod(state=RUNNING, phase="Running", **second))), RUNS, "PodRunning", "bot-2"),
        "complete": (attempt(0, _word("Completed"), conditions=COMPLETED), COMPLETE, "Completed", "words"),
        "was complete": (attempt(0, _word("AlreadyComplete"), conditions=COMPLETED), COMPLETE, "AlreadyComplete", ""),
        "complete, pod gone": (Seen(job(COMPLETED)), COMPLETE, gone, "spec.output.uri"),
        "complete, no word": (attempt(0, conditions=COMPLETED), COMPLETE, gone, "gone"),
        "complete, says failed": (attempt(0, _word("DataInvalid"), conditions=COMPLETED), COMPLETE, gone, "gone"),
        "complete, deleted": (Seen({**deleted, **job(COMPLETED)}), COMPLETE, gone, "gone"),
        "permanent": (attempt(42, _word("DataInvalid"), conditions=POLICY), FAILED, "DataInvalid", "words"),
        "permanent, no word": (attempt(42, conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, garbage": (attempt(42, '{"reason":', conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, huge": (attempt(42, huge, conditions=POLICY), FAILED, gone, "exit status 42"),
        "permanent, unknown word": (attempt(42, _word("Hacked"), conditions=POLICY), FAILED, gone, "exit status 42"),
        "failed, says completed": (attempt(42, _word("Completed"), conditions=POLICY), FAILED, gone, "42"),
        "attempts used up": (
            attempt(75, _word("StorageUnreachable"), conditions=BACKOFF), FAILED, "StorageUnreachable", "words"),
        "attempts used up, no word": (
            attempt(1, conditions=BACKOFF), FAILED, "BackoffLimitExceeded", "exit status 1"),
        "attempts used up, memory": (
            attempt(137, why="OOMKilled", conditions=BACKOFF), FAILED, "OOMKilled", "limits.memory"),
        "to stop, nothing there": (Seen(wanted=stop), SUSPENDED, "Suspended", "spec.suspend"),
        "to stop, pod saves": (Seen(deleted, (leaving,), wanted=stop), RUNS, "Suspending", "bot-1"),
        "to stop, pod pends": (Seen(deleted, (pod(),), wanted=stop), STARTING, "Suspending", "bot-1"),
        "to stop, pod has left": (
            Seen(deleted, (pod(phase="Failed"),), wanted=stop), STARTING, "Suspending", "being deleted"),
        "to stop, pod of a Job that is gone": (Seen(leaving="bot-7", wanted=stop), STARTING, "Suspending", "bot-7"),
        "to stop, but complete": (
            Seen(job(COMPLETED), (pod(state=ended(0, _word("Completed")), phase="Succeeded"),), wanted=stop),
            COMPLETE, "Completed", "words"),
        "too late to start": (
            Seen(job(**started), (pod(conditions=[unscheduled]),), wanted=late),
            FAILED, "StartupDeadlineExceeded", "0/3"),
        "too late, queued": (Seen(job(suspend=True, **started), wanted=late), STARTING, "Queued", "suspended"),
        "too late, but it runs": (Seen(job(**started), (leaving,), wanted=late), RUNS, "PodRunning", "bot-1"),
        "too late, but it ran": (
            Seen(job(**started), (first, pod(**second)), wanted=late), STARTING, "Retrying", "no route"),
        "ran too long": (
            attempt(143, _word("Preempted"), conditions=over), FAILED, "DeadlineExceeded", "activeDeadlineSeconds"),
        "node lost": (Seen(job(active=1), (lost,)), STARTING, "NodeLost", "out-of-service"),
        "queued after an attempt": (
            Seen(job(suspend=True), (first,), waits=Said("Preempted", "by another")), STARTING, "Queued", "by another"),
        "failed, pod gone": (Seen(job(BACKOFF)), FAILED, "BackoffLimitExceeded", "backoff limit"),
    }  # fmt: skip


def _conditions(status: FineTuneJobStatus) -> dict[str, str]:
    return {each.type: each.status for each in status.conditions}


def test_each_state_has_its_phase_conditions_and_reason(build: type[Build]) -> None:
    for name, (seen, (phase, conditions), reason, message) in _cases(build).items():
        status = next_status(META, FineTuneJobStatus(), seen, NOW)
        assert (status.phase, _conditions(status)) == (phase, conditions), name
        assert {each.reason for each in status.conditions} == {reason}, name
        assert message in status.conditions[0].message, (name, status.conditions[0].message)
        assert bool(status.completion_time) == is_terminal(status), name


@pytest.mark.cluster
def test_each_state_is_what_gitops_tools_should_take_it_for(build: type[Build], kstatus: Kstatus) -> None:
    """A wait of Flux or `helm --wait` ends at Current: once the Job is there, however long it queues or runs."""
    meanings = {"Reconciling": "InProgress", "Stalled": "Failed"}
    cases = _cases(build)
    jobs = []
    for seen, *_ in cases.values():
        status = next_status(META, FineTuneJobStatus(), seen, NOW).to_json()
        jobs.append({**build.stored(), "status": status})
    for (name, (seen, (_, conditions), *_)), found in zip(cases.items(), kstatus(*jobs), strict=True):
        (expected,) = {meanings[kind] for kind in conditions if kind in meanings} or {"Current"}
        assert found["status"] == expected, (name, seen, found)


def test_a_terminal_status_never_flips(build: type[Build]) -> None:
    cases = _cases(build)
    for name, (seen, *_) in cases.items():
        ended = next_status(META, FineTuneJobStatus(), seen, NOW)
        if is_terminal(ended):
            assert all(next_status(META, ended, other, LATER) == ended for other, *_ in cases.values()), name


def test_a_terminal_status_follows_the_generation(build: type[Build]) -> None:
    ended = next_status(META, FineTuneJobStatus(), Seen(build.job(COMPLETED)), NOW)
    changed = META.model_copy(update={"generation": 2})
    assert next_status(changed, ended, Seen(), LATER).observed_generation == 2


def test_the_same_again_is_the_same_status(build: type[Build]) -> None:
    for name, (seen, *_) in _cases(build).items():
        once = next_status(META, FineTuneJobStatus(), seen, NOW)
        assert next_status(META, once, seen, LATER) == once, name


def test_transition_time_moves_only_with_the_status(build: type[Build]) -> None:
    pending = next_status(META, FineTuneJobStatus(), Seen(), NOW)
    queued = next_status(META, pending, Seen(build.job(suspend=True)), LATER)
    assert queued.conditions[0].last_transition_time == NOW
    running = Seen(build.job(), (build.pod(state=RUNNING, phase="Running"),))
    assert next_status(META, queued, running, LATER).conditions[0].last_transition_time == LATER


def test_what_the_outcome_reports_is_kept(build: type[Build]) -> None:
    dataset = {"rows": 3, "kept": 2, "rejected": {"overlength": 1}, "tokens": 9, "supervisedTokens": 4, "digest": "d"}
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r", "metrics": {"trainLoss": 0.5}}
    word = _word("Completed", dataset=dataset, result=result, backend="unsloth")
    pod = build.pod(state=build.ended(0, word), phase="Succeeded")
    status = next_status(META, FineTuneJobStatus(), Seen(build.job(COMPLETED, succeeded=1), (pod,)), NOW).to_json()
    assert status["dataset"].items() >= dataset.items()
    assert (status["result"], status["backend"]) == (result, "unsloth")
    assert (status["attempts"], status["startTime"], status["jobName"]) == (1, NOW, "bot")
    assert status["progress"] == {"stage": "Done", "percentage": 100, "lastUpdateTime": NOW}


def test_a_failure_publishes_no_result(build: type[Build]) -> None:
    result = {"adapterURI": "s3://b/k", "digest": "sha256:1", "modelRevision": "r"}
    pod = build.pod(state=build.ended(42, _word("DiskFull", result=result)), phase="Failed")
    assert next_status(META, FineTuneJobStatus(), Seen(build.job(POLICY), (pod,)), NOW).result is None


def test_progress_is_kept_between_attempts_without_its_estimate(build: type[Build]) -> None:
    progress = Progress(stage="Training", percentage=40, estimated_remaining_seconds=4321, last_update_time=NOW)
    pod = build.pod(state=RUNNING, phase="Running")
    running = next_status(META, FineTuneJobStatus(), Seen(build.job(), (pod,), progress), NOW)
    assert running.progress
    assert running.progress.estimated_remaining == "1h12m"
    unasked = next_status(META, running, Seen(build.job(), (pod,)), NOW)
    lost = next_status(META, unasked, Seen(build.job(), (build.pod(phase="Failed"),), progress), NOW)
    assert lost.progress
    assert (lost.progress.percentage, lost.progress.estimated_remaining) == (40, None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (4321, "1h12m"), (90_000, "1d1h")]
)
def test_the_estimate_reads_well(build: type[Build], seconds: int, text: str) -> None:
    progress = Progress(stage="Training", estimated_remaining_seconds=seconds, last_update_time=NOW)
    seen = Seen(build.job(), (build.pod(state=RUNNING, phase="Running"),), progress)
    status = next_status(META, FineTuneJobStatus(), seen, NOW)
    assert status.progress
    assert status.progress.estimated_remaining == text


def test_attempts_and_start_never_go_back(build: type[Build]) -> None:
    before = FineTuneJobStatus(attempts=3, start_time=NOW)
    later = build.pod(state={"running": {"startedAt": LATER}}, phase="Running")
    status = next_status(META, before, Seen(build.job(failed=1), (later,)), LATER)
    assert (status.attempts, status.start_time) == (3, NOW)


def test_long_messages_are_cut(build: type[Build]) -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "x" * 9999}
    status = next_status(META, FineTuneJobStatus(), Seen(build.job(), (build.pod(conditions=[unscheduled]),)), NOW)
    assert len(status.conditions[0].message) == 4096


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "7", '"Completed"', "{}", "\x00", "{" * 4000,
        '{"reason":"Completed"}', '{"reason":"Completed","message":7}',
        '{"reason":"Completed","message":"x","progress":{"stage":"Done","lastUpdateTime":"t","step":1e999}}',
        '{"reason":"Completed","message":"x","progress":{"stage":"Done","lastUpdateTime":"t","loss":NaN}}',
        '{"reason":"Completed","message":"\\ud800"}',
        _word("Completed", "x", dataset={"rows": 10**30, "kept": 1, "tokens": 1, "supervisedTokens": 1, "digest": ""}),
    ],
)  # fmt: skip
def test_a_forged_outcome_is_none(text: str) -> None:
    assert parse_outcome(text) is None


def test_an_outcome_of_a_newer_trainer_is_read() -> None:
    outcome = parse_outcome(_word("Completed", "x", invented=1))
    assert outcome
    assert outcome.message == "x"


def test_a_trainer_that_answers_and_does_not_move_is_stalled_until_it_moves(build: type[Build]) -> None:
    pod = build.pod(state=RUNNING, phase="Running")
    wanted = Wanted(stall=1200)

    def see(previous: FineTuneJobStatus, minute: int, step: int | None) -> FineTuneJobStatus:
        now = f"2026-11-23T08:{minute:02}:00Z"
        said = None if step is None else Progress(stage="Training", step=step, last_update_time=now)
        return next_status(META, previous, Seen(build.job(), (pod,), said, wanted=wanted), now)

    moved = see(FineTuneJobStatus(), 1, 5)
    assert see(moved, 10, 5) == moved
    stalled = see(moved, 12, 5)
    assert stalled.conditions[0].reason == "ProgressStalled"
    assert "2026-11-23T08:01:00Z" in stalled.conditions[0].message
    assert (stalled.phase, see(stalled, 13, 5)) == ("Running", stalled)
    assert see(stalled, 14, 6).conditions[0].reason == "PodRunning"
    silent = see(FineTuneJobStatus(), 1, None)
    assert see(silent, 50, None).conditions[0].reason == "PodRunning"  # it cannot be asked: nothing is known
