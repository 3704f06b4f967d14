"""Attempts, seconds and checkpoints, as pods come, end and vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.operator.story import DISRUPTED, META, Story, at

from finetune_operator.api import FineTuneJobStatus, OperatorReason
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.operator.bodies import Build


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
    assert (status.attempts, status.active_seconds, status.start_time) == (3, (1 + 1 + 4) * 60, at(1))


def test_a_status_of_an_earlier_version_is_taken_over(build: type[Build]) -> None:
    story = Story(build)
    story.status = FineTuneJobStatus(attempts=2)
    assert story.see(9, story.ended(1, 2, 75), story.running(5)).attempts == 2
    assert story.see(12, story.running(11)).attempts == 3


def test_seconds_are_those_that_a_trainer_ran(build: type[Build]) -> None:
    story = Story(build, gpus_per_node=4)
    story.see(0)
    assert story.status.active_seconds is None
    assert story.see(1, story.running(1)).active_seconds == 0
    assert story.see(3, story.running(1), checkpoint=2).active_seconds == 120
    assert story.see(6, story.ended(1, 5, 143, checkpoint=4)).active_seconds == 240
    assert story.see(20).active_seconds == 240  # nothing ran
    status = story.see(24, story.running(22))
    assert (status.active_seconds, status.gpu_seconds, status.accounted_time) == (360, 4 * 360, at(24))


def test_pods_of_several_nodes_hold_gpus_each_and_time_once(build: type[Build]) -> None:
    story = Story(build, gpus_per_node=8)
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


def test_a_checkpoint_from_the_future_or_of_no_time_is_none(build: type[Build]) -> None:
    story = Story(build)
    for text in ("9999-01-01T00:00:00Z", "soon", "2026-11-23T08:00:00"):
        progress = Progress(stage="Training", last_checkpoint_step=1, last_checkpoint_time=text, last_update_time=at(1))
        seen = ObservedState(job=build.job(active=1), pods=(story.running(1),), progress=progress)
        assert compute_status(META, FineTuneJobStatus(), seen, at(2)).last_checkpoint_step in (None, 1)
    assert story.see(5, story.running(1)).last_checkpoint_time is None


@pytest.mark.parametrize("steps", [(70, 75), (75, 70)], ids=["the last word is newer", "the last word is older"])
def test_of_two_checkpoints_of_one_second_that_with_more_steps_is_the_newer(
    build: type[Build], steps: tuple[int, int]
) -> None:
    """Times are whole seconds, and a small model saves several times in one."""
    status = FineTuneJobStatus()
    for step in steps:
        said = Progress(stage="Training", last_checkpoint_step=step, last_checkpoint_time=at(1), last_update_time=at(1))
        status = compute_status(META, status, ObservedState(job=build.job(active=1), progress=said), at(2))
    assert status.last_checkpoint_step == 75


def test_what_a_pod_used_and_saved_counts_though_its_job_is_gone(build: type[Build]) -> None:
    story = Story(build, gpus_per_node=2)
    story.see(1, story.running(1))
    left = (story.ended(1, 6, 143, checkpoint=5),)
    waits = ObservedState(
        blocked=Blocked(OperatorReason.JOB_PENDING, "words"), orphaned_pods=left, run_policy=RunPolicy(gpus_per_node=2)
    )
    story.status = compute_status(META, story.status, waits, at(8))
    again = build.job(active=1)
    again["metadata"]["creationTimestamp"] = at(8)
    story.status = compute_status(
        META, story.status, ObservedState(again, (story.running(9),), orphaned_pods=left), at(10)
    )
    status = story.status
    assert (status.attempts, status.interruptions, status.last_checkpoint_step) == (2, None, 5)
    assert (status.active_seconds, status.gpu_seconds) == ((5 + 1) * 60, (5 * 2 + 1) * 60)


def test_pod_whose_end_no_node_reported_counts_until_it_was_taken_for_lost(build: type[Build]) -> None:
    story = Story(build, gpus_per_node=4)
    story.see(1, story.running(1))
    lost = story.running(1)
    lost["status"] |= {"phase": "Failed", "conditions": [{**DISRUPTED, "lastTransitionTime": at(6)}]}
    status = story.see(30, lost, story.running(20))
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (2, (5 + 10) * 60, (5 + 10) * 60 * 4)
