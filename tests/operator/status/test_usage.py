"""Attempts, seconds and checkpoints of a run whose pods start, terminate and disappear."""

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
    timeline = RunTimeline(build)
    assert timeline.observe(0).attempts is None
    assert timeline.observe(1, timeline.running_pod(1)).attempts == 1
    assert timeline.observe(2, timeline.running_pod(1), checkpoint=2).attempts == 1
    assert timeline.observe(3).attempts == 1  # The pod was deleted.
    assert timeline.observe(5, timeline.running_pod(4)).attempts == 2
    assert timeline.observe(9, timeline.terminated_pod(4, 6, 75), timeline.running_pod(8)).attempts == 3


def test_usage_unobserved_attempts_are_all_counted(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    status = timeline.observe(
        9, timeline.terminated_pod(1, 2, 75), timeline.terminated_pod(3, 4, 75), timeline.running_pod(5)
    )
    assert (status.attempts, status.active_seconds, status.start_time) == (3, (1 + 1 + 4) * 60, timestamp_at(1))


def test_usage_status_of_older_version_keeps_attempts(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    timeline.status = FineTuneJobStatus(attempts=2)
    assert timeline.observe(9, timeline.terminated_pod(1, 2, 75), timeline.running_pod(5)).attempts == 2
    assert timeline.observe(12, timeline.running_pod(11)).attempts == 3


def test_usage_active_seconds_count_only_running_trainer(build: type[Builders]) -> None:
    timeline = RunTimeline(build, gpus_per_node=4)
    timeline.observe(0)
    assert timeline.status.active_seconds is None
    assert timeline.observe(1, timeline.running_pod(1)).active_seconds == 0
    assert timeline.observe(3, timeline.running_pod(1), checkpoint=2).active_seconds == 120
    assert timeline.observe(6, timeline.terminated_pod(1, 5, 143, checkpoint=4)).active_seconds == 240
    assert timeline.observe(20).active_seconds == 240  # No pod ran.
    status = timeline.observe(24, timeline.running_pod(22))
    assert (status.active_seconds, status.gpu_seconds, status.accounted_time) == (360, 4 * 360, timestamp_at(24))


def test_usage_multi_node_counts_gpus_per_pod_and_time_once(build: type[Builders]) -> None:
    timeline = RunTimeline(build, gpus_per_node=8)
    pods = [timeline.running_pod(1, "bot-0-x", "0"), timeline.running_pod(2, "bot-1-x", "1")]
    status = timeline.observe(5, *pods)
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (1, 240, (4 + 3) * 60 * 8)


def test_usage_elapsed_time_alone_leaves_status_unchanged(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    once = timeline.observe(2, timeline.running_pod(1))
    assert timeline.observe(9, timeline.running_pod(1)) == once


def test_usage_clock_runs_backwards_never_decreases_nor_double_counts(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    timeline.observe(9, timeline.running_pod(1))
    assert timeline.observe(5, timeline.running_pod(1), checkpoint=4).active_seconds == 480
    assert timeline.observe(11, timeline.running_pod(1), checkpoint=10).active_seconds == 600


def test_usage_checkpoint_with_invalid_time_is_ignored(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    for text in ("9999-01-01T00:00:00Z", "soon", "2026-11-23T08:00:00"):
        progress = Progress(
            stage="Training", last_checkpoint_step=1, last_checkpoint_time=text, last_update_time=timestamp_at(1)
        )
        observed = ObservedState(job=build.job(active=1), pods=(timeline.running_pod(1),), progress=progress)
        assert compute_status(META, FineTuneJobStatus(), observed, timestamp_at(2)).last_checkpoint_step in (None, 1)
    assert timeline.observe(5, timeline.running_pod(1)).last_checkpoint_time is None


@pytest.mark.parametrize("steps", [(70, 75), (75, 70)], ids=["later report is newer", "later report is older"])
def test_usage_checkpoints_of_same_second_prefer_higher_step(build: type[Builders], steps: tuple[int, int]) -> None:
    """Times have a resolution of one second, in which a small model saves several checkpoints."""
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
    timeline = RunTimeline(build, gpus_per_node=2)
    timeline.observe(1, timeline.running_pod(1))
    orphaned_pods = (timeline.terminated_pod(1, 6, 143, checkpoint=5),)
    pending = ObservedState(
        blocked=Blocked(OperatorReason.JOB_PENDING, "words"),
        orphaned_pods=orphaned_pods,
        run_policy=RunPolicy(gpus_per_node=2),
    )
    timeline.status = compute_status(META, timeline.status, pending, timestamp_at(8))
    new_job = build.job(active=1)
    new_job["metadata"]["creationTimestamp"] = timestamp_at(8)
    timeline.status = compute_status(
        META,
        timeline.status,
        ObservedState(new_job, (timeline.running_pod(9),), orphaned_pods=orphaned_pods),
        timestamp_at(10),
    )
    status = timeline.status
    assert (status.attempts, status.interruptions, status.last_checkpoint_step) == (2, None, 5)
    assert (status.active_seconds, status.gpu_seconds) == ((5 + 1) * 60, (5 * 2 + 1) * 60)


def test_usage_unreported_pod_end_counts_until_disruption(build: type[Builders]) -> None:
    timeline = RunTimeline(build, gpus_per_node=4)
    timeline.observe(1, timeline.running_pod(1))
    lost_pod = timeline.running_pod(1)
    lost_pod["status"] |= {
        "phase": "Failed",
        "conditions": [{**DISRUPTION_TARGET, "lastTransitionTime": timestamp_at(6)}],
    }
    status = timeline.observe(30, lost_pod, timeline.running_pod(20))
    assert (status.attempts, status.active_seconds, status.gpu_seconds) == (2, (5 + 10) * 60, (5 + 10) * 60 * 4)


@pytest.mark.parametrize("skew", [-2, 2], ids=["first node ahead", "second node ahead"])
def test_attempts_clocks_of_nodes_differ_are_all_counted(build: type[Builders], skew: int) -> None:
    """The first attempt runs from minute 3 to 4, the second from 5. The clock of one node is ahead by five minutes."""
    timeline = RunTimeline(build)
    first_start, second_start = (3 + 5, 5) if skew < 0 else (3, 5 + 5)
    first, second = (
        timeline.terminated_pod(first_start, first_start + 1, 143),
        timeline.running_pod(second_start),
    )
    first["metadata"]["creationTimestamp"], second["metadata"]["creationTimestamp"] = timestamp_at(3), timestamp_at(5)
    first_running = {**first, "status": timeline.running_pod(first_start)["status"]}
    timeline.observe(3, first_running)
    timeline.observe(4, first)
    status = timeline.observe(6, first, second)
    assert (status.attempts, status.last_attempt_creation_time) == (2, timestamp_at(5))
    assert timeline.observe(7, first, second).attempts == 2
    assert timeline.observe(8, second).attempts == 2


def test_attempts_recorded_by_earlier_version_are_not_counted_again(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    pod = timeline.running_pod(3)
    timeline.observe(4, pod)
    timeline.status = timeline.status.model_copy(update={"last_attempt_creation_time": None})
    assert timeline.observe(5, pod).attempts == 1
    assert timeline.observe(9, pod, timeline.running_pod(8)).attempts == 2


def test_usage_of_worker_before_first_attempt_is_stored(build: type[Builders]) -> None:
    """The first pod is pending, while another one runs and waits for it."""
    timeline = RunTimeline(build, budget_gpu_seconds=60)
    worker = timeline.running_pod(1, "bot-1-x", index="1")
    timeline.observe(1, build.pod("bot-0-x"), worker)
    status = timeline.observe(3, build.pod("bot-0-x"), worker)
    assert (status.attempts, status.gpu_seconds, status.accounted_time) == (None, 120, timestamp_at(3))
    stopped = ObservedState(run_policy=RunPolicy(budget_gpu_seconds=60))
    assert compute_status(META, status, stopped, timestamp_at(4)).reason == "BudgetExhausted"
