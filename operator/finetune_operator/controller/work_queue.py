"""Work queue modeled on that of client-go, with two priorities and fairness between namespaces.

A key is queued at most once and processed by at most one worker at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque

from finetune_operator.api.objects import ObjectKey
from finetune_operator.telemetry import counters

RETRY_BASE_SECONDS = 0.5
RETRY_MAX_SECONDS = 300.0
_LOW_PRIORITY_TURN = 8
"""Every eighth key is of low priority, if there is one, so that low priority never starves."""
_JITTER = random.SystemRandom()


class _FairQueue:
    """Keys in order of arrival within a namespace, and namespaces in turn: many keys delay only their own namespace."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, deque[ObjectKey]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._namespaces)

    def append(self, key: ObjectKey) -> None:
        self._namespaces.setdefault(key.namespace, deque()).append(key)

    def popleft(self) -> ObjectKey:
        namespace, keys = self._namespaces.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._namespaces[namespace] = keys  # behind all other namespaces
        return key


class WorkQueue:
    """Rate-limited queue as in client-go, with a second queue for low priority. It belongs to one event loop."""

    def __init__(self) -> None:
        self._high_priority = _FairQueue()
        self._low_priority = _FairQueue()
        self._queued_at: dict[ObjectKey, float] = {}
        self._processing_since: dict[ObjectKey, float] = {}
        self._dirty: set[ObjectKey] = set()
        self._failures: dict[ObjectKey, int] = {}
        self._timers: dict[ObjectKey, asyncio.TimerHandle] = {}
        self._key_added = asyncio.Event()
        self._turn = 0

    def add(self, key: ObjectKey, *, low_priority: bool = False) -> None:
        """Enqueue a key. If it is being processed, it is enqueued again afterwards."""
        if key in self._processing_since:
            self._dirty.add(key)
        elif key not in self._queued_at:
            self._queued_at[key] = time.monotonic()
            (self._low_priority if low_priority else self._high_priority).append(key)
            self._key_added.set()

    def add_after(self, key: ObjectKey, delay: float) -> None:
        """Enqueue a key with low priority after a delay in seconds, unless it is due earlier already."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer and timer.when() <= loop.time() + delay:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self._add_due_key, key)

    def add_rate_limited(self, key: ObjectKey, min_delay: float = 0) -> None:
        """Enqueue a key after a failure: with exponential backoff, a maximum and jitter, and not before `min_delay`."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2 ** min(failures - 1, 16))
        self.add_after(key, max(min_delay, delay) * _JITTER.uniform(1, 1.3))

    def forget(self, key: ObjectKey) -> None:
        """Reset the backoff of a key that was processed without an error."""
        self._failures.pop(key, None)

    async def get(self) -> ObjectKey:
        """Wait for a key. The worker must call `done` after processing it."""
        while not self._queued_at:
            self._key_added.clear()
            await self._key_added.wait()
        key = self._select_queue().popleft()
        now = time.monotonic()
        counters.WORK_QUEUE_SECONDS.observe(now - self._queued_at.pop(key))
        self._processing_since[key] = now
        return key

    def done(self, key: ObjectKey) -> None:
        """Mark a key as processed."""
        del self._processing_since[key]
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def get_depth(self) -> int:
        """Return the number of queued keys."""
        return len(self._queued_at)

    def has_high_priority(self) -> bool:
        """Return whether a key of high priority is queued."""
        return bool(self._high_priority)

    def get_longest_wait(self) -> float:
        """Return the seconds since the oldest queued key was added."""
        now = time.monotonic()
        return now - next(iter(self._queued_at.values()), now)

    def get_longest_processing(self) -> float:
        """Return the seconds that the slowest worker has spent on its key."""
        return time.monotonic() - min(self._processing_since.values(), default=time.monotonic())

    def close(self) -> None:
        """Cancel all delayed keys."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _add_due_key(self, key: ObjectKey) -> None:
        del self._timers[key]
        self.add(key, low_priority=True)

    def _select_queue(self) -> _FairQueue:
        """Return the queue to take from: that of high priority, and in every eighth turn that of low priority."""
        self._turn = (self._turn + 1) % _LOW_PRIORITY_TURN
        preferred, fallback = (
            (self._high_priority, self._low_priority) if self._turn else (self._low_priority, self._high_priority)
        )
        return preferred or fallback
