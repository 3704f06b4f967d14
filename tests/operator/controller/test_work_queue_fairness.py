"""Namespaces take turns in the work queue, and no key is lost, duplicated or starved."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.operator.builders import build_key

from finetune_operator.api.objects import ObjectKey
from finetune_operator.controller.work_queue import WorkQueue

Step = tuple[ObjectKey, bool] | str

A, B = build_key("a", "ns"), build_key("b", "ns")
KINDS = ("FineTuneJob", "Other")
NAMESPACES = ("one", "two", "three")
KEYS = st.builds(ObjectKey, st.sampled_from(KINDS), st.sampled_from(NAMESPACES), st.sampled_from("123"))
STEPS = st.one_of(st.tuples(KEYS, st.booleans()), st.sampled_from(["get", "done"]))


@pytest.mark.parametrize("routine", [False, True])
async def test_work_queue_flooding_namespace_delays_only_itself(routine: bool) -> None:
    queue = WorkQueue()
    flood = [build_key(str(index), "flood") for index in range(10_000)]
    for key in flood:
        queue.add(key, low_priority=routine)
    first = await queue.get()
    queue.add(A, low_priority=routine)
    queue.add(B, low_priority=routine)
    order = [first, *[await queue.get() for _ in range(queue.get_depth())]]
    assert order[:5] == [flood[0], flood[1], A, flood[2], B]
    assert [key for key in order if key not in (A, B)] == flood


async def test_work_queue_longest_wait_is_oldest_key() -> None:
    queue = WorkQueue()
    queue.add(build_key("1", "flood"))
    queue.add(build_key("2", "flood"))
    await asyncio.sleep(0.05)
    queue.add(A)
    queue.add(B)
    assert [await queue.get(), await queue.get()] == [build_key("1", "flood"), A]
    assert queue.get_longest_wait() >= 0.05


class QueueModel:
    """A model of the queue, which the queue is compared with after each step."""

    def __init__(self) -> None:
        self.queue = WorkQueue()
        self.waiting: dict[ObjectKey, bool] = {}
        """Whether each key is routine, in the order of arrival."""
        self.working: list[ObjectKey] = []
        self.requeued: set[ObjectKey] = set()
        self.served_meanwhile: defaultdict[tuple[bool, str], set[str]] = defaultdict(set)
        """Namespaces that were served while another waited for its turn in the same lane."""

    def add(self, key: ObjectKey, routine: bool) -> None:
        self.queue.add(key, low_priority=routine)
        self._enqueue(key, routine)

    async def get(self) -> None:
        key = await asyncio.wait_for(self.queue.get(), 2)
        lane, namespace = self.waiting[key], key.namespace
        peers = [waiting_key for waiting_key, routine in self.waiting.items() if routine == lane]
        assert key == next(peer for peer in peers if peer.namespace == namespace)
        del self.waiting[key]
        self.working.append(key)
        self._record_turn(lane, namespace, {peer.namespace for peer in peers})

    def _record_turn(self, lane: bool, namespace: str, waiting: set[str]) -> None:
        self.served_meanwhile.pop((lane, namespace), None)
        for other_namespace in waiting - {namespace}:
            assert namespace not in self.served_meanwhile[lane, other_namespace], (
                f"{namespace} had two turns while {other_namespace} waited"
            )
            self.served_meanwhile[lane, other_namespace].add(namespace)

    def done(self) -> None:
        key = self.working.pop(0)
        self.queue.done(key)
        if key in self.requeued:
            self.requeued.remove(key)
            self._enqueue(key, False)

    def check(self) -> None:
        assert self.queue.get_depth() == len(self.waiting)
        assert self.queue.has_high_priority() == (False in self.waiting.values())

    def _enqueue(self, key: ObjectKey, routine: bool) -> None:
        if key in self.working:
            self.requeued.add(key)
        else:
            self.waiting.setdefault(key, routine)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=60))
async def test_work_queue_random_steps_match_fairness_model(steps: list[Step]) -> None:
    model = QueueModel()
    for step in [*steps, *["get", "done"] * 2 * len(steps)]:
        if not isinstance(step, str):
            model.add(*step)
        elif step == "get" and model.waiting:
            await model.get()
        elif step == "done" and model.working:
            model.done()
        model.check()
    assert not model.waiting
    assert not model.working
