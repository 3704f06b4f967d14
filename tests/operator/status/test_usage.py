"""Attempts, seconds and checkpoints, as pods come, end and vanish."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.operator.run_timeline import DISRUPTION_TARGET, META, RunTimeline, timestamp_at

from finetune_operator.api import FineTuneJobStatus, OperatorReason
from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import Blocked, ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders


def test_usage_pod_deleted_keeps_attempt_count(build: type[Builders]) -> None:
    story = RunTimeline(build)
    assert story.observe(0).attempts is None
    assert story.observe(1, story.running_pod(1)).attempts == 1
    assert story.observe(2, story.running_pod(1), checkpoint=2).attempts == 1
    assert story.observe(3).attempts == 1  # drained, deleted
    assert story.observe(5, story.running_pod(4)).attempts == 2
    assert story.observe(9, story.terminated_pod(4, 6, 75), story.running_pod(8)).attempts == 3


def test_usage_unobserved_attempts_are_all_counted(build: type[Builders]) -> None:
    story = RunTimeline(build)
    status = story.observe(9, story.terminated_pod(1, 2, 75), story.terminated_pod(3, 4, 75), story.running_pod(5))
    assert (status.attempts, status.active_seconds, status.start_time) == (3, (1 + 1 + 4) * 60, timestamp_at(1))


def test_usage_status_of_older_version_keeps_attempts(build: type[Builders]) -> None:
    story = RunTimeline(build)
    story.status = FineTuneJobStatus(attempts=2)
    assert story.observe(9, story.terminated_pod(1, 2, 75), story.running_pod(5)).attempts == 2
    assert story.observe(12, story.running_pod(11)).attempts == 3


def test_usage_active_seconds_count_only_running_trainer(build: type[Builders]) -> None:
    story = RunTimeline(build, gpus_per_node=4)
    story.observe(0)
    assert story.status.active_seconds is None
    assert story.observe(1, story.running_pod(1)).active_seconds == 0
    assert story.observe(3, story.running_pod(1), checkpoint=2).active_seconds == 120
    assert story.observe(6, story.terminated_pod(1, 5, 143, checkpoint=4)).active_seconds == 240
    assert story.observe(20).active_seconds == 240  # nothing ran
    status = story.observe(24, story.running_pod(22))
    assert (status.active_seconds, status.gpu_seconds, status.accounted_time) == (360, 4 * 360, timestamp_at(24))


def test_usage_multi_node_counts_gpus_per_pod_and_time_once(build: type[Builders]) -> None:
    story = RunTimeline(build, gpus_per_node=8)
    pods = [story.running_pod(1, "bot-0-x", "0"), story.running_pod(2, "bot-1-x", "1")]
    status = story.observe(5, *pods)
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (1, 240, (4 + 3) * 60 * 8)


def test_usage_elapsed_time_alone_leaves_status_unchanged(build: type[Builders]) -> None:
    story = RunTimeline(build)
    once = story.observe(2, story.running_pod(1))
    assert story.observe(9, story.running_pod(1)) == once


def test_usage_clock_runs_backwards_never_decreases_nor_double_counts(build: type[Builders]) -> None:
    story = RunTimeline(build)
    story.observe(9, story.running_pod(1))
    assert story.observe(5, story.running_pod(1), checkpoint=4).active_seconds == 480
    assert story.observe(11, story.running_pod(1), checkpoint=10).active_seconds == 600


def test_usage_checkpoint_with_invalid_time_is_ignored(build: type[Builders]) -> None:
    story = RunTimeline(build)
    for text in ("9999-01-01T00:00:00Z", "soon", "2026-11-23T08:00:00"):
        progress = Progress(
            stage="Training", last_checkpoint_step=1, last_checkpoint_time=text, last_update_time=timestamp_at(1)
        )
        observed = ObservedState(job=build.job(active=1), pods=(story.running_pod(1),), progress=progress)
        assert compute_status(META, FineTuneJobStatus(), observed, timestamp_at(2)).last_checkpoint_step in (None, 1)
    assert story.observe(5, story.running_pod(1)).last_checkpoint_time is None


@pytest.mark.parametrize("steps", [(70, 75), (75, 70)], ids=["the last word is newer", "the last word is older"])
def test_usage_checkpoints_of_same_second_prefer_higher_step(build: type[Builders], steps: tuple[int, int]) -> None:
    """Times are whole seconds, and a small model saves several times in one."""
    status = FineTuneJobStatus()
    for step in steps:
        progress = Progress(
            stage="Training",
            last_checkpoint_step=step,
            last_checkpoint_time=timestamp_at(1),
            last_update_time=timestamp_at(1),
        )
        status = compute_status(
            META, status, ObservedState(job=build.job(active=1), progress=progress), timestamp_at(2)
        )
    assert status.last_checkpoint_step == 75


def test_usage_job_deleted_counts_orphaned_pod(build: type[Builders]) -> None:
    story = RunTimeline(build, gpus_per_node=2)
    story.observe(1, story.running_pod(1))
    orphaned_pods = (story.terminated_pod(1, 6, 143, checkpoint=5),)
    pending = ObservedState(
        blocked=Blocked(OperatorReason.JOB_PENDING, "words"),
        orphaned_pods=orphaned_pods,
        run_policy=RunPolicy(gpus_per_node=2),
    )
    story.status = compute_status(META, story.status, pending, timestamp_at(8))
    new_job = build.job(active=1)
    new_job["metadata"]["creationTimestamp"] = timestamp_at(8)
    story.status = compute_status(
        META,
        story.status,
        ObservedState(new_job, (story.running_pod(9),), orphaned_pods=orphaned_pods),
        timestamp_at(10),
    )
    status = story.status
    assert (status.attempts, status.interruptions, status.last_checkpoint_step) == (2, None, 5)
    assert (status.active_seconds, status.gpu_seconds) == ((5 + 1) * 60, (5 * 2 + 1) * 60)


def test_usage_unreported_pod_end_counts_until_disruption(build: type[Builders]) -> None:
    story = RunTimeline(build, gpus_per_node=4)
    story.observe(1, story.running_pod(1))
    lost_pod = story.running_pod(1)
    lost_pod["status"] |= {
        "phase": "Failed",
        "conditions": [{**DISRUPTION_TARGET, "lastTransitionTime": timestamp_at(6)}],
    }
    status = story.observe(30, lost_pod, story.running_pod(20))
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (2, (5 + 10) * 60, (5 + 10) * 60 * 4)
