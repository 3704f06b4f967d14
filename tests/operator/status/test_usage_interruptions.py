"""Consecutive interruptions without a new checkpoint end a run, according to the termination messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.support.operator.run_timeline import DISRUPTION_TARGET, META, Pod, RunTimeline, timestamp_at

from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_operator.status.usage import get_max_unreported

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders


MAX_UNREPORTED = get_max_unreported(RunPolicy())


class Attempt(NamedTuple):
    exit_code: int | None
    """None if the termination is never reported."""
    checkpoint: int | None = None
    """The minute of the checkpoint in the termination message, relative to the start of the attempt."""
    evicted: bool = False


class StreakCase(NamedTuple):
    attempts: list[Attempt]
    reason: str


STOPPED, STOPPED_WITH_CHECKPOINT = Attempt(143), Attempt(143, checkpoint=1)
EVICTED, EVICTED_WITH_CHECKPOINT = Attempt(137, evicted=True), Attempt(137, checkpoint=1, evicted=True)
UNREPORTED, FAILED = Attempt(None), Attempt(75)
INTERRUPTIONS = {
    "two stopped": StreakCase([STOPPED] * 2, "Retrying"),
    "three stopped": StreakCase([STOPPED] * 3, "NoProgress"),
    "three evicted": StreakCase([EVICTED] * 3, "NoProgress"),
    "three unreported": StreakCase([UNREPORTED] * 3, "PodRunning"),
    "maximum of unreported": StreakCase([UNREPORTED] * (MAX_UNREPORTED - 1), "PodRunning"),
    "one more unreported": StreakCase([UNREPORTED] * MAX_UNREPORTED, "NoProgress"),
    "all evicted with checkpoint": StreakCase([EVICTED_WITH_CHECKPOINT] * 5, "Retrying"),
    "all evicted with the checkpoint that they resumed from": StreakCase(
        [Attempt(137, checkpoint=-1, evicted=True)] * 3, "NoProgress"
    ),
    "unreported between stopped": StreakCase([STOPPED, UNREPORTED, STOPPED, UNREPORTED, STOPPED], "NoProgress"),
    "checkpoint between unreported": StreakCase(
        [*[UNREPORTED] * (MAX_UNREPORTED - 1), EVICTED_WITH_CHECKPOINT, UNREPORTED], "PodRunning"
    ),
    "checkpoint between stopped": StreakCase([STOPPED, STOPPED_WITH_CHECKPOINT, STOPPED], "Retrying"),
    "all stopped with checkpoint": StreakCase([STOPPED_WITH_CHECKPOINT] * 5, "Retrying"),
    "failures, which the backoff limit counts": StreakCase([FAILED] * 5, "Retrying"),
    "failure between stopped": StreakCase([STOPPED, STOPPED, FAILED, STOPPED], "NoProgress"),
}


def _observe_attempts(timeline: RunTimeline, attempts: list[Attempt], report_progress: bool) -> None:
    """Observe each attempt while it runs and after its end. An unreported end is known when the next attempt starts."""
    pods: list[Pod] = []
    for number, attempt in enumerate(attempts):
        start = 1 + 4 * number
        checkpoint = start + 1 if report_progress else None
        timeline.observe(start + 1, *pods, timeline.running_pod(start), checkpoint=checkpoint)
        if attempt.exit_code is not None:
            saved_at = None if attempt.checkpoint is None else start + attempt.checkpoint
            pods.append(timeline.terminated_pod(start, start + 2, attempt.exit_code, saved_at, attempt.evicted))
        timeline.observe(start + 2, *pods)
    if attempts[-1].exit_code is None:
        next_start = 1 + 4 * len(attempts)
        timeline.observe(next_start, *pods, timeline.running_pod(next_start))


@pytest.mark.parametrize("report_progress", [True, False], ids=["progress reported", "progress unreachable"])
@pytest.mark.parametrize("case", INTERRUPTIONS.values(), ids=INTERRUPTIONS)
def test_interruptions_without_new_checkpoint_end_run(
    build: type[Builders], case: StreakCase, report_progress: bool
) -> None:
    """Only termination messages count. Reported progress, with a newer checkpoint each time, changes nothing."""
    timeline = RunTimeline(build)
    _observe_attempts(timeline, case.attempts, report_progress)
    assert timeline.get_reason() == case.reason


def test_interruptions_unreported_keep_polled_checkpoint_in_status(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    for start in (1, 5, 9, 13):
        timeline.observe(start, timeline.running_pod(start))
        timeline.observe(start + 2, timeline.running_pod(start), checkpoint=start + 1)
        timeline.observe(start + 3)  # The pod disappears before its node reports its end.
    assert (timeline.status.attempts, timeline.status.unreported_interruptions, timeline.get_reason()) == (
        4,
        3,
        "JobCreated",
    )
    assert (timeline.status.last_checkpoint_step, timeline.status.last_checkpoint_time) == (14, timestamp_at(14))


def test_interruptions_pod_failed_by_garbage_collector_is_unreported(build: type[Builders]) -> None:
    """The pod garbage collector fails the pods of a deleted node. Their containers keep the state `running`."""
    timeline = RunTimeline(build)
    for start in (1, 5, 9, 13):
        failed_pod = timeline.running_pod(start)
        failed_pod["status"] |= {"phase": "Failed", "conditions": [DISRUPTION_TARGET]}
        timeline.observe(start, timeline.running_pod(start))
        timeline.observe(start + 2, failed_pod)
    assert (timeline.get_reason(), timeline.status.interruptions) == ("Retrying", None)
    assert timeline.observe(18, timeline.running_pod(17)).unreported_interruptions == 4


def test_interruptions_no_progress_message_names_reached_limit(build: type[Builders]) -> None:
    reported, unreported = RunTimeline(build), RunTimeline(build)
    reported.observe(9, *(reported.terminated_pod(start, start + 1, 137, evicted=True) for start in (1, 3, 5)))
    assert (
        "3 consecutive attempts were interrupted before a new checkpoint was saved."
        in reported.status.conditions[0].message
    )
    for start in range(1, MAX_UNREPORTED + 2):
        unreported.observe(start, unreported.running_pod(start))
    message = unreported.status.conditions[0].message
    assert "pods of 30 attempts disappeared" in message
    assert "interrupted before" not in message


@pytest.mark.parametrize("limit", [1, 5])
def test_interruptions_limit_is_that_of_spec(build: type[Builders], limit: int) -> None:
    timeline = RunTimeline(build, max_interruptions=limit)
    _observe_attempts(timeline, [STOPPED] * limit, report_progress=False)
    assert timeline.get_reason() == "NoProgress"
    assert f"{limit} consecutive attempts were interrupted" in timeline.status.conditions[0].message
    higher_limit = RunTimeline(build, max_interruptions=limit + 1)
    _observe_attempts(higher_limit, [STOPPED] * limit, report_progress=False)
    assert higher_limit.get_reason() == "Retrying"


def test_interruptions_suspension_resets_count(build: type[Builders]) -> None:
    timeline = RunTimeline(build)
    pods = [timeline.terminated_pod(1, 2, 143), timeline.terminated_pod(3, 4, 143), timeline.running_pod(5)]
    assert timeline.observe(6, *pods).interruptions == 2
    timeline.status = compute_status(
        META, timeline.status, ObservedState(run_policy=RunPolicy(suspend=True)), timestamp_at(8)
    )
    assert (timeline.get_reason(), timeline.status.interruptions, timeline.status.attempts) == ("Suspended", None, 3)


def test_interruptions_suspended_pod_is_not_counted(build: type[Builders]) -> None:
    """The pod was deleted with its Job, and the next pod belongs to another Job."""
    timeline = RunTimeline(build)
    timeline.observe(1, timeline.running_pod(1))
    observed = ObservedState(run_policy=RunPolicy(suspend=True))
    timeline.status = compute_status(META, timeline.status, observed, timestamp_at(3))
    resumed = build.job(active=1)
    resumed["metadata"]["creationTimestamp"] = timestamp_at(5)
    timeline.status = compute_status(
        META, timeline.status, ObservedState(resumed, (timeline.running_pod(6),)), timestamp_at(7)
    )
    assert (timeline.status.attempts, timeline.status.interruptions) == (2, None)


def _set_completion_index(pod: Pod, index: int) -> Pod:
    pod["metadata"] |= {
        "name": f"bot-{index}-x",
        "annotations": {"batch.kubernetes.io/job-completion-index": f"{index}"},
    }
    return pod


PEERS = {"worker killed": (137, None), "worker failed": (75, None), "worker stopped by SIGTERM": (143, 3)}


@pytest.mark.parametrize(("exit_code", "interruptions"), PEERS.values(), ids=PEERS)
def test_interruptions_rank_zero_lost_failed_worker_is_not_counted(
    build: type[Builders], exit_code: int, interruptions: int | None
) -> None:
    timeline, pods = RunTimeline(build), list[Pod]()
    for start in (1, 5, 9):
        rank_zero_pod = _set_completion_index(timeline.running_pod(start), 0)
        timeline.observe(start, *pods, rank_zero_pod)
        ends = (
            (timeline.terminated_pod(start, start + 2, 76), 0),
            (timeline.terminated_pod(start, start + 2, exit_code), 1),
        )
        pods += [_set_completion_index(pod, index) for pod, index in ends]
    timeline.observe(14, *pods, _set_completion_index(timeline.running_pod(13), 0))
    assert timeline.status.interruptions == interruptions
