"""The work queue processes each key once, and the cache follows the cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.support.operator.builders import build_key

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller import work_queue
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot, ObjectCache
from finetune_operator.kube.finetunejob_cache import get_finetunejob_key, get_owner_key

if TYPE_CHECKING:
    import pytest
    from tests.support.operator.builders import Builders

A, B, C = (build_key(name, "ns") for name in "abc")


async def _get_soon(queue: WorkQueue) -> ObjectKey:
    return await asyncio.wait_for(queue.get(), 2)


async def _is_nothing_queued(queue: WorkQueue, seconds: float = 0.05) -> bool:
    try:
        await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return True
    return False


async def test_work_queue_key_added_twice_is_queued_once() -> None:
    queue = WorkQueue()
    for key in (A, B, A, A):
        queue.add(key)
    assert [await _get_soon(queue), await _get_soon(queue)] == [A, B]
    assert await _is_nothing_queued(queue)


async def test_work_queue_key_in_progress_is_not_handed_out() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await _get_soon(queue) == A
    queue.add(A)
    queue.add(A)
    assert await _is_nothing_queued(queue)
    queue.done(A)
    assert await _get_soon(queue) == A
    queue.done(A)
    assert await _is_nothing_queued(queue)


async def test_work_queue_routine_key_waits_but_never_starves() -> None:
    queue = WorkQueue()
    queue.add(A, low_priority=True)
    for index in range(20):
        queue.add(build_key(str(index), "ns"))
    order = [await _get_soon(queue) for _ in range(21)]
    assert 1 <= order.index(A) <= 8


async def test_work_queue_waiting_getters_wake_up() -> None:
    queue = WorkQueue()
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add(A)
    queue.add(B)
    assert set(await asyncio.wait_for(asyncio.gather(*getters), 2)) == {A, B}


async def test_work_queue_add_after_earlier_delay_wins() -> None:
    queue = WorkQueue()
    queue.add_after(A, 60)
    queue.add_after(A, 0.01)
    queue.add_after(A, 60)
    assert await _get_soon(queue) == A
    queue.done(A)
    assert await _is_nothing_queued(queue)


async def test_work_queue_retry_backs_off_up_to_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    queue, delays = WorkQueue(), []
    monkeypatch.setattr(queue, "add_after", lambda key, delay: delays.append(delay))
    for _ in range(30):
        queue.add_rate_limited(A)
    base, cap = work_queue.RETRY_BASE_SECONDS, work_queue.RETRY_MAX_SECONDS
    assert base <= delays[0] <= base * 1.3
    assert base * 4 <= delays[2] <= base * 4 * 1.3
    assert all(cap <= delay <= cap * 1.3 for delay in delays[12:])
    queue.forget(A)
    queue.add_rate_limited(A)
    assert delays[-1] <= base * 1.3
    queue.add_rate_limited(B, min_delay=77)
    assert delays[-1] >= 77


async def test_work_queue_closed_adds_nothing() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0.01)
    queue.close()
    assert await _is_nothing_queued(queue)


async def test_work_queue_longest_work_grows() -> None:
    queue = WorkQueue()
    assert queue.get_longest_processing() < 0.01
    queue.add(A)
    await queue.get()
    await asyncio.sleep(0.02)
    assert queue.get_longest_processing() >= 0.02


def _build_body(build: type[Builders], version: int, uid: str = "u", name: str = "a") -> dict[str, Any]:
    return build.finetunejob(name, uid=uid, resourceVersion=str(version))


def test_object_cache_older_version_is_ignored(build: type[Builders]) -> None:
    cache = ObjectCache(transform.strip_pod)
    assert cache.update(A, _build_body(build, 5))
    assert not cache.update(A, _build_body(build, 4))
    assert not cache.update(A, _build_body(build, 5))
    assert cache.list_by_key(A)[0]["metadata"]["resourceVersion"] == "5"


def test_object_cache_deleted_object_is_not_revived(build: type[Builders]) -> None:
    cache = ObjectCache(transform.strip_pod)
    cache.update(A, _build_body(build, 5))
    cache.delete(_build_body(build, 6))
    assert not cache.update(A, _build_body(build, 5))
    cache.update(A, _build_body(build, 5))  # by a list that was on its way
    cache.replace({None: ListSnapshot({"u"}, 5)})
    assert cache.list_by_key(A) == []
    assert cache.list_keys() == []


def test_object_cache_relabeled_object_comes_back(build: type[Builders]) -> None:
    """A watch by label reports a removed label as a deletion, but the object keeps its uid."""
    cache = ObjectCache(transform.strip_pod)
    cache.update(A, _build_body(build, 5))
    cache.delete(_build_body(build, 6))
    assert not cache.update(A, _build_body(build, 6))
    assert cache.update(A, _build_body(build, 7))


def test_object_cache_list_repairs_missed_events(build: type[Builders]) -> None:
    cache = ObjectCache(transform.strip_pod)
    cache.update(A, _build_body(build, 1, "gone"))
    cache.update(B, _build_body(build, 9, "newer than the list"))
    cache.update(C, _build_body(build, 3, "missed"))
    cache.replace({None: ListSnapshot({"missed"}, 5)})
    assert set(cache.list_keys()) == {B, C}


def test_object_cache_reused_name_is_another_object(build: type[Builders]) -> None:
    cache = ObjectCache(transform.strip_pod)
    cache.update(A, _build_body(build, 1, "old"))
    cache.update(A, _build_body(build, 2, "new"))
    assert [body["metadata"]["uid"] for body in cache.list_by_key(A)] == ["old", "new"]
    cache.delete(_build_body(build, 3, "old"))
    assert [body["metadata"]["uid"] for body in cache.list_by_key(A)] == ["new"]


def test_key_of_uses_label_and_name_key_uses_name(build: type[Builders]) -> None:
    body = build.finetunejob("a", labels={"finetune.dev/job": "b"})
    assert get_owner_key(body) == build_key("b")
    assert get_finetunejob_key(body) == build_key("a")
