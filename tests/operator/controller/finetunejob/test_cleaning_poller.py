"""Many due runs are cleaned little by little, and those that cannot be cleaned do not hold up others."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.support.operator.builders import build_key

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.finetunejob.cleaning_poller import CleaningPoller
from finetune_operator.kube.client import KubeClient
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.transport import Transport
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

NOW = datetime(2026, 11, 30, 8, tzinfo=UTC)


class FixedTimeClient(KubeClient):
    """A client that knows the time and sends nothing."""

    def now(self) -> datetime:
        return NOW


def _fill_cache(build: type[Builders], count: int, completion_time: str) -> FineTuneJobCache:
    cache = FineTuneJobCache()
    for number in range(count):
        status = {
            "startTime": "2026-11-20T08:00:00Z",
            "completionTime": completion_time,
            "conditions": [{"type": "Failed", "status": "True"}],
        }
        name = f"bot-{number:03}"
        body = {**build.finetunejob(name, uid=name), "status": status}
        cache.finetunejobs.update(build_key(name), body)
    return cache


async def _poll(cache: FineTuneJobCache, count: int) -> list[list[ObjectKey]]:
    settings = Settings(checkpoint_retention_seconds=3600)
    poller = CleaningPoller(cache, FixedTimeClient(Transport(1), lambda: True), settings, list)
    polls: list[list[ObjectKey]] = []
    for _ in range(count):
        polls.append([])
        await poller.poll(polls[-1].append)
    return polls


async def test_cleaning_poller_many_due_runs_are_enqueued_once_in_turn(build: type[Builders]) -> None:
    polls = await _poll(_fill_cache(build, 50, "2026-11-30T06:00:00Z"), 7)
    assert [len(poll) for poll in polls] == [0, 20, 20, 10, 0, 0, 0]  # the first one must not delay the start
    assert len({key for poll in polls for key in poll}) == 50


async def test_cleaning_poller_due_run_is_tried_again_later(build: type[Builders]) -> None:
    polls = await _poll(_fill_cache(build, 1, "2026-11-30T06:00:00Z"), 26)
    assert [number for number, poll in enumerate(polls) if poll] == [1, 13, 25]


async def test_cleaning_poller_run_within_retention_is_not_enqueued(build: type[Builders]) -> None:
    polls = await _poll(_fill_cache(build, 1, "2026-11-30T07:30:00Z"), 3)
    assert polls == [[], [], []]
