"""Attempts, interruptions, seconds and checkpoints, as pods come, end and vanish."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.accounting import MAX_UNREPORTED
from finetune_operator.api import FineTuneJobStatus, Metadata, OperatorReason
from finetune_operator.seen import Obstacle, Seen
from finetune_operator.status import next_status
from finetune_operator.wanted import Wanted
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.operator.bodies import Build

META = Metadata(name="bot", namespace="team", uid="uid-bot", generation=1)
DISRUPTED = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
Pod = dict[str, Any]


def _at(minute: int) -> str:
    return f"2026-11-23T{8 + minute // 60:02}:{minute % 60:02}:00Z"


class Story:
    """What the operator sees of one run, minute by minute."""

    def __init__(self, build: type[Build], **wanted: Any) -> None:
        self._build = build
        self._wanted = Wanted(**wanted)
        self.status = FineTuneJobStatus()

    def running(self, start: int, name: str = "", index: str | None = None) -> Pod:
        pod = self._build.pod(
            name or f"bot-{start}", {"running": {"startedAt": _at(start)}}, "Running", created=_at(start)
        )
        if index is not None:
            pod["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
        return pod

    def ended(self, start: int, end: int, code: int, checkpoint: int | None = None, evicted: bool = False) -> Pod:
        said: dict[str, Any] = {"stage": "Training", "lastUpdateTime": _at(end)}
        if checkpoint is not None:
            said |= {"lastCheckpointStep": checkpoint, "lastCheckpointTime": _at(checkpoint)}
        reason = {143: "Preempted", 75: "StorageUnreachable"}.get(code)
        word = json.dumps({"reason": reason, "message": "", "progress": said}) if reason else ""
        if not reason and checkpoint is not None:
            word = json.dumps({"checkpoint": {"step": checkpoint, "time": _at(checkpoint)}})
        state = {"exitCode": code, "message": word, "startedAt": _at(start), "finishedAt": _at(end)}
        conditions = [DISRUPTED] if evicted else []
        return self._build.pod(
            f"bot-{start}", {"terminated": state}, "Failed", created=_at(start), conditions=conditions
        )

    def see(self, minute: int, *pods: Pod, checkpoint: int | None = None) -> FineTuneJobStatus:
        progress = None
        if checkpoint is not None:
            progress = Progress(
                stage="Training", last_checkpoint_step=checkpoint, last_checkpoint_time=_at(checkpoint),
                last_update_time=_at(minute),
            )  # fmt: skip
        seen = Seen(job=self._build.job(active=1), pods=pods, progress=progress, wanted=self._wanted)
        self.status = next_status(META, self.status, seen, _at(minute))
        return self.status

    def reason(self) -> str:
        return self.status.conditions[0].reason


def test_attempts_are_counted_though_their_pods_vanish(build: type[Build]) -> None:
    story = Story(build)
    assert story.see(0).attempts is None
    assert story.see(1, story.running(1)).attempts == 1
    assert story.see(2, story.running(1), checkpoint=2).attempts == 1
    assert story.see(3).attempts == 1  # drained, deleted
    assert story.see(5, story.running(4)).attempts == 2
    assert story.see(9, story.ended(4, 6, 75), story.running(8)).attempts == 3


def test_several_attempts_that_nobody_watched_are_all_counted(build: type[Build]) -> None:
    story = Story(build)
    status = story.see(9, story.ended(1, 2, 75), story.ended(3, 4, 75), story.running(5))
    assert (status.attempts, status.active_seconds, status.start_time) == (3, (1 + 1 + 4) * 60, _at(1))


def test_a_status_of_an_earlier_version_is_taken_over(build: type[Build]) -> None:
    story = Story(build)
    story.status = FineTuneJobStatus(attempts=2)
    assert story.see(9, story.ended(1, 2, 75), story.running(5)).attempts == 2
    assert story.see(12, story.running(11)).attempts == 3


def test_seconds_are_those_that_a_trainer_ran(build: type[Build]) -> None:
    story = Story(build, gpus=4)
    story.see(0)
    assert story.status.active_seconds is None
    assert story.see(1, story.running(1)).active_seconds == 0
    assert story.see(3, story.running(1), checkpoint=2).active_seconds == 120
    assert story.see(6, story.ended(1, 5, 143, checkpoint=4)).active_seconds == 240
    assert story.see(20).active_seconds == 240  # nothing ran
    status = story.see(24, story.running(22))
    assert (status.active_seconds, status.gpu_seconds, status.accounted_time) == (360, 4 * 360, _at(24))


def test_pods_of_several_nodes_hold_gpus_each_and_time_once(build: type[Build]) -> None:
    story = Story(build, gpus=8)
    pods = [story.running(1, "bot-0-x", "0"), story.running(2, "bot-1-x", "1")]
    status = story.see(5, *pods)
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (1, 240, (4 + 3) * 60 * 8)


def test_counting_alone_writes_nothing(build: type[Build]) -> None:
    story = Story(build)
    once = story.see(2, story.running(1))
    assert story.see(9, story.running(1)) == once


def test_a_clock_that_runs_backwards_takes_nothing_back_and_counts_nothing_twice(build: type[Build]) -> None:
    story = Story(build)
    story.see(9, story.running(1))
    assert story.see(5, story.running(1), checkpoint=4).active_seconds == 480
    assert story.see(11, story.running(1), checkpoint=10).active_seconds == 600


INTERRUPTIONS: dict[str, tuple[list[tuple[int, int | None, bool]], str]] = {  # (exit status, checkpoint, evicted)
    "three in vain": ([(143, None, False)] * 3, "NoProgress"),
    "three evicted": ([(137, None, True)] * 3, "NoProgress"),
    "three vanished": ([(-1, None, False)] * 3, "PodRunning"),
    "as many vanished as may": ([(-1, None, False)] * (MAX_UNREPORTED - 1), "PodRunning"),
    "one more vanished": ([(-1, None, False)] * MAX_UNREPORTED, "NoProgress"),
    "each was killed and left a record": ([(137, 1, True)] * 5, "Retrying"),
    "each was killed and left the record that it resumed from": ([(137, -1, True)] * 3, "NoProgress"),
    "vanished ones do not excuse": ([*[(143, None, False), (-1, None, False)] * 2, (143, None, False)], "NoProgress"),
    "a saved one forgives vanished ones": (
        [*[(-1, None, False)] * (MAX_UNREPORTED - 1), (137, 1, True), (-1, None, False)], "PodRunning"),
    "two in vain": ([(143, None, False)] * 2, "Retrying"),
    "the second saved": ([(143, None, False), (143, 1, False), (143, None, False)], "Retrying"),
    "each saved": ([(143, 1, False)] * 5, "Retrying"),
    "failures are the backoff limit's": ([(75, None, False)] * 5, "Retrying"),
    "a failure between does not excuse": (
        [(143, None, False), (143, None, False), (75, None, False), (143, None, False)], "NoProgress"),
}  # fmt: skip


@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_interruptions_end_a_run_only_without_progress(build: type[Build], case: str) -> None:
    attempts, expected = INTERRUPTIONS[case]
    story, pods = Story(build), list[Pod]()
    for number, (code, checkpoint, evicted) in enumerate(attempts):
        start = 1 + 4 * number
        story.see(start, *pods, story.running(start))
        saved = None if checkpoint is None else start + checkpoint
        if code < 0:  # gone with its node
            story.see(start + 2, *pods)
            continue
        pods.append(story.ended(start, start + 2, code, saved, evicted))
        story.see(start + 2, *pods)
    if attempts[-1][0] < 0:  # whose end nobody saw; it is known when the next one starts
        story.see(1 + 4 * len(attempts), *pods, story.running(1 + 4 * len(attempts)))
    assert story.reason() == expected


@pytest.mark.parametrize("heard", [True, False], ids=["progress is heard", "progress is unreachable"])
@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_progress_decides_nothing(build: type[Build], case: str, heard: bool) -> None:
    """A trainer that reports an ever newer checkpoint over the network, and one that cannot be reached, end alike."""
    attempts, expected = INTERRUPTIONS[case]
    story, pods = Story(build), list[Pod]()
    for number, (code, checkpoint, evicted) in enumerate(attempts):
        start = 1 + 4 * number
        story.see(start + 1, *pods, story.running(start), checkpoint=start + 1 if heard else None)
        if code >= 0:
            saved = None if checkpoint is None else start + checkpoint
            pods.append(story.ended(start, start + 2, code, saved, evicted))
        story.see(start + 2, *pods)
    if attempts[-1][0] < 0:
        story.see(1 + 4 * len(attempts), *pods, story.running(1 + 4 * len(attempts)))
    assert story.reason() == expected


def test_a_checkpoint_that_was_only_seen_while_running_is_shown(build: type[Build]) -> None:
    story = Story(build)
    for start in (1, 5, 9, 13):
        story.see(start, story.running(start))
        story.see(start + 2, story.running(start), checkpoint=start + 1)
        story.see(start + 3)  # the pod is gone before it could say a word
    assert (story.status.attempts, story.status.unreported_interruptions, story.reason()) == (4, 3, "JobCreated")
    assert (story.status.last_checkpoint_step, story.status.last_checkpoint_time) == (14, _at(14))


def test_a_pod_that_failed_without_its_nodes_report_is_unreported(build: type[Build]) -> None:
    """The garbage collector fails the pods of a node that is gone; their containers' last state stays `running`."""
    story = Story(build)
    for start in (1, 5, 9, 13):
        gone = story.running(start)
        gone["status"] |= {"phase": "Failed", "conditions": [DISRUPTED]}
        story.see(start, story.running(start))
        story.see(start + 2, gone)
    assert (story.reason(), story.status.interruptions) == ("Retrying", None)
    assert story.see(18, story.running(17)).unreported_interruptions == 4


def test_no_progress_says_which_bound_was_reached(build: type[Build]) -> None:
    known, unknown = Story(build), Story(build)
    known.see(9, *(known.ended(start, start + 1, 137, evicted=True) for start in (1, 3, 5)))
    assert "3 attempts were interrupted before they had saved" in known.status.conditions[0].message
    for start in range(MAX_UNREPORTED + 1):
        unknown.see(start, unknown.running(start))
    message = unknown.status.conditions[0].message
    assert "pods of 30 attempts disappeared" in message
    assert "interrupted before they had saved" not in message


def test_a_checkpoint_from_the_future_or_of_no_time_is_none(build: type[Build]) -> None:
    story = Story(build)
    for text in ("9999-01-01T00:00:00Z", "soon", "2026-11-23T08:00:00"):
        progress = Progress(
            stage="Training", last_checkpoint_step=1, last_checkpoint_time=text, last_update_time=_at(1)
        )
        seen = Seen(job=build.job(active=1), pods=(story.running(1),), progress=progress)
        assert next_status(META, FineTuneJobStatus(), seen, _at(2)).last_checkpoint_step in (None, 1)
    assert story.see(5, story.running(1)).last_checkpoint_time is None


def test_suspension_forgives_interruptions(build: type[Build]) -> None:
    story = Story(build)
    pods = [story.ended(1, 2, 143), story.ended(3, 4, 143), story.running(5)]
    assert story.see(6, *pods).interruptions == 2
    story.status = next_status(META, story.status, Seen(wanted=Wanted(suspend=True)), _at(8))
    assert (story.reason(), story.status.interruptions, story.status.attempts) == ("Suspended", None, 3)


@pytest.mark.parametrize("steps", [(70, 75), (75, 70)], ids=["the last word is newer", "the last word is older"])
def test_of_two_checkpoints_of_one_second_that_with_more_steps_is_the_newer(
    build: type[Build], steps: tuple[int, int]
) -> None:
    """Times are whole seconds, and a small model saves several times in one."""
    status = FineTuneJobStatus()
    for step in steps:
        said = Progress(
            stage="Training", last_checkpoint_step=step, last_checkpoint_time=_at(1), last_update_time=_at(1)
        )
        status = next_status(META, status, Seen(job=build.job(active=1), progress=said), _at(2))
    assert status.last_checkpoint_step == 75


def test_what_was_suspended_was_not_interrupted(build: type[Build]) -> None:
    """Its pod has left with its Job; the next one is of another Job."""
    story = Story(build)
    story.see(1, story.running(1))
    seen = Seen(wanted=Wanted(suspend=True))
    story.status = next_status(META, story.status, seen, _at(3))
    resumed = build.job(active=1)
    resumed["metadata"]["creationTimestamp"] = _at(5)
    story.status = next_status(META, story.status, Seen(resumed, (story.running(6),)), _at(7))
    assert (story.status.attempts, story.status.interruptions) == (2, None)


def _of_a_group(pod: Pod, index: int) -> Pod:
    pod["metadata"] |= {
        "name": f"bot-{index}-x",
        "annotations": {"batch.kubernetes.io/job-completion-index": f"{index}"},
    }
    return pod


# exit status of another worker, and how often three attempts whose leader lost it were interrupted
PEERS = {"killed for memory": (137, None), "failed": (75, None), "was told to stop": (143, 3)}


@pytest.mark.parametrize(("code", "interruptions"), PEERS.values(), ids=PEERS)
def test_a_leader_that_lost_a_worker_that_failed_was_not_interrupted(
    build: type[Build], code: int, interruptions: int | None
) -> None:
    story, pods = Story(build), list[Pod]()
    for start in (1, 5, 9):
        running = _of_a_group(story.running(start), 0)
        story.see(start, *pods, running)
        ends = (story.ended(start, start + 2, 76), 0), (story.ended(start, start + 2, code), 1)
        pods += [_of_a_group(pod, index) for pod, index in ends]
    story.see(14, *pods, _of_a_group(story.running(13), 0))
    assert story.status.interruptions == interruptions


def test_what_a_pod_used_and_saved_counts_though_its_job_is_gone(build: type[Build]) -> None:
    story = Story(build, gpus=2)
    story.see(1, story.running(1))
    left = (story.ended(1, 6, 143, checkpoint=5),)
    waits = Seen(obstacle=Obstacle(OperatorReason.JOB_PENDING, "words"), left=left, wanted=Wanted(gpus=2))
    story.status = next_status(META, story.status, waits, _at(8))
    again = build.job(active=1)
    again["metadata"]["creationTimestamp"] = _at(8)
    story.status = next_status(META, story.status, Seen(again, (story.running(9),), left=left), _at(10))
    status = story.status
    assert (status.attempts, status.interruptions, status.last_checkpoint_step) == (2, None, 5)
    assert (status.active_seconds, status.gpu_seconds) == ((5 + 1) * 60, (5 * 2 + 1) * 60)
