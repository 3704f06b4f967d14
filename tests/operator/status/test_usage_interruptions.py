"""Interruptions without a newer checkpoint end a run, by termination messages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.operator.run_timeline import DISRUPTION_TARGET, META, Pod, RunTimeline, timestamp_at

from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_operator.status.usage import MAX_UNREPORTED

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders


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
def test_interruptions_without_new_checkpoint_end_run(build: type[Builders], case: str) -> None:
    attempts, expected = INTERRUPTIONS[case]
    story, pods = RunTimeline(build), list[Pod]()
    for number, (code, checkpoint, evicted) in enumerate(attempts):
        start = 1 + 4 * number
        story.observe(start, *pods, story.running_pod(start))
        saved = None if checkpoint is None else start + checkpoint
        if code < 0:  # gone with its node
            story.observe(start + 2, *pods)
            continue
        pods.append(story.terminated_pod(start, start + 2, code, saved, evicted))
        story.observe(start + 2, *pods)
    if attempts[-1][0] < 0:  # whose end nobody saw; it is known when the next one starts
        story.observe(1 + 4 * len(attempts), *pods, story.running_pod(1 + 4 * len(attempts)))
    assert story.get_reason() == expected


@pytest.mark.parametrize("heard", [True, False], ids=["progress is heard", "progress is unreachable"])
@pytest.mark.parametrize("case", INTERRUPTIONS)
def test_interruptions_reported_progress_does_not_change_outcome(build: type[Builders], case: str, heard: bool) -> None:
    """A trainer that reports an ever newer checkpoint over the network, and one that cannot be reached, end alike."""
    attempts, expected = INTERRUPTIONS[case]
    story, pods = RunTimeline(build), list[Pod]()
    for number, (code, checkpoint, evicted) in enumerate(attempts):
        start = 1 + 4 * number
        story.observe(start + 1, *pods, story.running_pod(start), checkpoint=start + 1 if heard else None)
        if code >= 0:
            saved = None if checkpoint is None else start + checkpoint
            pods.append(story.terminated_pod(start, start + 2, code, saved, evicted))
        story.observe(start + 2, *pods)
    if attempts[-1][0] < 0:
        story.observe(1 + 4 * len(attempts), *pods, story.running_pod(1 + 4 * len(attempts)))
    assert story.get_reason() == expected


def test_interruptions_unreported_keep_polled_checkpoint_in_status(build: type[Builders]) -> None:
    story = RunTimeline(build)
    for start in (1, 5, 9, 13):
        story.observe(start, story.running_pod(start))
        story.observe(start + 2, story.running_pod(start), checkpoint=start + 1)
        story.observe(start + 3)  # the pod is gone before it could say a word
    assert (story.status.attempts, story.status.unreported_interruptions, story.get_reason()) == (4, 3, "JobCreated")
    assert (story.status.last_checkpoint_step, story.status.last_checkpoint_time) == (14, timestamp_at(14))


def test_interruptions_pod_failed_by_garbage_collector_is_unreported(build: type[Builders]) -> None:
    """The garbage collector fails the pods of a node that is gone; their containers' last state stays `running`."""
    story = RunTimeline(build)
    for start in (1, 5, 9, 13):
        failed_pod = story.running_pod(start)
        failed_pod["status"] |= {"phase": "Failed", "conditions": [DISRUPTION_TARGET]}
        story.observe(start, story.running_pod(start))
        story.observe(start + 2, failed_pod)
    assert (story.get_reason(), story.status.interruptions) == ("Retrying", None)
    assert story.observe(18, story.running_pod(17)).unreported_interruptions == 4


def test_interruptions_no_progress_message_names_reached_limit(build: type[Builders]) -> None:
    reported, unreported = RunTimeline(build), RunTimeline(build)
    reported.observe(9, *(reported.terminated_pod(start, start + 1, 137, evicted=True) for start in (1, 3, 5)))
    assert (
        "3 consecutive attempts were interrupted before a new checkpoint was saved."
        in reported.status.conditions[0].message
    )
    for start in range(MAX_UNREPORTED + 1):
        unreported.observe(start, unreported.running_pod(start))
    message = unreported.status.conditions[0].message
    assert "pods of 30 attempts disappeared" in message
    assert "interrupted before" not in message


def test_interruptions_suspension_resets_count(build: type[Builders]) -> None:
    story = RunTimeline(build)
    pods = [story.terminated_pod(1, 2, 143), story.terminated_pod(3, 4, 143), story.running_pod(5)]
    assert story.observe(6, *pods).interruptions == 2
    story.status = compute_status(
        META, story.status, ObservedState(run_policy=RunPolicy(suspend=True)), timestamp_at(8)
    )
    assert (story.get_reason(), story.status.interruptions, story.status.attempts) == ("Suspended", None, 3)


def test_interruptions_suspended_pod_is_not_counted(build: type[Builders]) -> None:
    """Its pod has left with its Job; the next one is of another Job."""
    story = RunTimeline(build)
    story.observe(1, story.running_pod(1))
    observed = ObservedState(run_policy=RunPolicy(suspend=True))
    story.status = compute_status(META, story.status, observed, timestamp_at(3))
    resumed = build.job(active=1)
    resumed["metadata"]["creationTimestamp"] = timestamp_at(5)
    story.status = compute_status(META, story.status, ObservedState(resumed, (story.running_pod(6),)), timestamp_at(7))
    assert (story.status.attempts, story.status.interruptions) == (2, None)


def _set_completion_index(pod: Pod, index: int) -> Pod:
    pod["metadata"] |= {
        "name": f"bot-{index}-x",
        "annotations": {"batch.kubernetes.io/job-completion-index": f"{index}"},
    }
    return pod


# exit status of another worker, and how often three attempts whose leader lost it were interrupted
PEERS = {"killed for memory": (137, None), "failed": (75, None), "was told to stop": (143, 3)}


@pytest.mark.parametrize(("code", "interruptions"), PEERS.values(), ids=PEERS)
def test_interruptions_leader_lost_failed_worker_is_not_counted(
    build: type[Builders], code: int, interruptions: int | None
) -> None:
    story, pods = RunTimeline(build), list[Pod]()
    for start in (1, 5, 9):
        leader_pod = _set_completion_index(story.running_pod(start), 0)
        story.observe(start, *pods, leader_pod)
        ends = (story.terminated_pod(start, start + 2, 76), 0), (story.terminated_pod(start, start + 2, code), 1)
        pods += [_set_completion_index(pod, index) for pod, index in ends]
    story.observe(14, *pods, _set_completion_index(story.running_pod(13), 0))
    assert story.status.interruptions == interruptions
