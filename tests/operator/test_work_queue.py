"""The work queue and the store: once each, never two at a time, in good order, and equal to the cluster."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from finetune_operator.controller import work_queue
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube import transform
from finetune_operator.kube.cache import ListSnapshot, ObjectCache, get_object_key, get_owner_key

if TYPE_CHECKING:
    import pytest
    from tests.operator.bodies import Build

A, B, C = ("ns", "a"), ("ns", "b"), ("ns", "c")


async def _soon(queue: WorkQueue) -> tuple[str, str]:
    return await asyncio.wait_for(queue.get(), 2)


async def _nothing(queue: WorkQueue, seconds: float = 0.05) -> bool:
    try:
        await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return True
    return False


async def test_a_key_waits_once() -> None:
    queue = WorkQueue()
    for key in (A, B, A, A):
        queue.add(key)
    assert [await _soon(queue), await _soon(queue)] == [A, B]
    assert await _nothing(queue)


async def test_a_key_is_never_worked_on_twice_at_a_time() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert await _soon(queue) == A
    queue.add(A)
    queue.add(A)
    assert await _nothing(queue)
    queue.done(A)
    assert await _soon(queue) == A
    queue.done(A)
    assert await _nothing(queue)


async def test_new_work_goes_first_and_old_work_is_not_forgotten() -> None:
    queue = WorkQueue()
    queue.add(A, low_priority=True)
    for index in range(20):
        queue.add(("ns", str(index)))
    order = [await _soon(queue) for _ in range(21)]
    assert 1 <= order.index(A) <= 8


async def test_a_getter_wakes_up() -> None:
    queue = WorkQueue()
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add(A)
    queue.add(B)
    assert set(await asyncio.wait_for(asyncio.gather(*getters), 2)) == {A, B}


async def test_the_earlier_of_two_delays_counts() -> None:
    queue = WorkQueue()
    queue.add_after(A, 60)
    queue.add_after(A, 0.01)
    queue.add_after(A, 60)
    assert await _soon(queue) == A
    queue.done(A)
    assert await _nothing(queue)


async def test_retries_back_off_up_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_closed_queue_adds_nothing() -> None:
    queue = WorkQueue()
    queue.add_after(A, 0.01)
    queue.close()
    assert await _nothing(queue)


async def test_slow_work_is_seen() -> None:
    queue = WorkQueue()
    assert queue.get_longest_processing() < 0.01
    queue.add(A)
    await queue.get()
    await asyncio.sleep(0.02)
    assert queue.get_longest_processing() >= 0.02


def _body(build: type[Build], version: int, uid: str = "u", name: str = "a") -> dict[str, Any]:
    return build.stored(name, uid=uid, resourceVersion=str(version))


def test_an_older_event_changes_nothing(build: type[Build]) -> None:
    shelf = ObjectCache(transform.strip_pod)
    assert shelf.update(A, _body(build, 5))
    assert not shelf.update(A, _body(build, 4))
    assert not shelf.update(A, _body(build, 5))
    assert shelf.list_by_key(A)[0]["metadata"]["resourceVersion"] == "5"


def test_what_is_gone_stays_gone(build: type[Build]) -> None:
    shelf = ObjectCache(transform.strip_pod)
    shelf.update(A, _body(build, 5))
    shelf.delete(_body(build, 6))
    assert not shelf.update(A, _body(build, 5))
    shelf.update(A, _body(build, 5))  # by a list that was on its way
    shelf.replace({None: ListSnapshot({"u"}, 5)})
    assert shelf.list_by_key(A) == []
    assert shelf.list_keys() == []


def test_what_only_lost_its_label_may_come_back(build: type[Build]) -> None:
    """To a watch by label that is a deletion, and the object goes on under the same uid."""
    shelf = ObjectCache(transform.strip_pod)
    shelf.update(A, _body(build, 5))
    shelf.delete(_body(build, 6))
    assert not shelf.update(A, _body(build, 6))
    assert shelf.update(A, _body(build, 7))


def test_a_list_repairs_what_events_missed(build: type[Build]) -> None:
    shelf = ObjectCache(transform.strip_pod)
    shelf.update(A, _body(build, 1, "gone"))
    shelf.update(B, _body(build, 9, "newer than the list"))
    shelf.update(C, _body(build, 3, "missed"))
    shelf.replace({None: ListSnapshot({"missed"}, 5)})
    assert set(shelf.list_keys()) == {B, C}


def test_a_name_used_again_is_another_object(build: type[Build]) -> None:
    shelf = ObjectCache(transform.strip_pod)
    shelf.update(A, _body(build, 1, "old"))
    shelf.update(A, _body(build, 2, "new"))
    assert [body["metadata"]["uid"] for body in shelf.list_by_key(A)] == ["old", "new"]
    shelf.delete(_body(build, 3, "old"))
    assert [body["metadata"]["uid"] for body in shelf.list_by_key(A)] == ["new"]


def test_keys_come_from_our_label_but_for_a_finetunejob(build: type[Build]) -> None:
    body = build.stored("a", labels={"finetune.dev/job": "b"})
    assert get_owner_key(body) == ("team", "b")
    assert get_object_key(body) == ("team", "a")
