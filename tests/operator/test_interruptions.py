"""Interruptions without a newer checkpoint end a run, by termination messages alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.operator.story import DISRUPTED, META, Pod, Story, at

from finetune_operator.api.run_policy import RunPolicy
from finetune_operator.observed.state import ObservedState
from finetune_operator.status.job_status import compute_status
from finetune_operator.status.usage import MAX_UNREPORTED

if TYPE_CHECKING:
    from tests.operator.bodies import Build


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
    assert (story.status.last_checkpoint_step, story.status.last_checkpoint_time) == (14, at(14))


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


def test_suspension_forgives_interruptions(build: type[Build]) -> None:
    story = Story(build)
    pods = [story.ended(1, 2, 143), story.ended(3, 4, 143), story.running(5)]
    assert story.see(6, *pods).interruptions == 2
    story.status = compute_status(META, story.status, ObservedState(run_policy=RunPolicy(suspend=True)), at(8))
    assert (story.reason(), story.status.interruptions, story.status.attempts) == ("Suspended", None, 3)


def test_what_was_suspended_was_not_interrupted(build: type[Build]) -> None:
    """Its pod has left with its Job; the next one is of another Job."""
    story = Story(build)
    story.see(1, story.running(1))
    seen = ObservedState(run_policy=RunPolicy(suspend=True))
    story.status = compute_status(META, story.status, seen, at(3))
    resumed = build.job(active=1)
    resumed["metadata"]["creationTimestamp"] = at(5)
    story.status = compute_status(META, story.status, ObservedState(resumed, (story.running(6),)), at(7))
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
