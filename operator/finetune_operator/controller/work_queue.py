"""Keys that wait for a worker: each at most once, never two workers on one, new work before old, namespaces in turn."""

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
_JITTER = random.SystemRandom()


class _FairQueue:
    """Keys as they came within a namespace, and namespaces in turn: who has thousands waits for them alone."""

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
            self._namespaces[namespace] = keys  # behind all others
        return key


class WorkQueue:
    """Like client-go's rate-limited queue, with a second lane. For one event loop."""

    def __init__(self) -> None:
        self._high_priority = _FairQueue()
        self._low_priority = _FairQueue()
        self._queued_at: dict[ObjectKey, float] = {}  # since when
        self._processing_since: dict[ObjectKey, float] = {}
        self._dirty: set[ObjectKey] = set()
        self._failures: dict[ObjectKey, int] = {}
        self._timers: dict[ObjectKey, asyncio.TimerHandle] = {}
        self._key_added = asyncio.Event()
        self._turn = 0

    def add(self, key: ObjectKey, *, low_priority: bool = False) -> None:
        """Have a key worked on; if it is being worked on now, once more after that."""
        if key in self._processing_since:
            self._dirty.add(key)
        elif key not in self._queued_at:
            self._queued_at[key] = time.monotonic()
            (self._low_priority if low_priority else self._high_priority).append(key)
            self._key_added.set()

    def add_after(self, key: ObjectKey, delay: float) -> None:
        """Have a key worked on later, unless it is due earlier anyway."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer and timer.when() <= loop.time() + delay:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self._add_due_key, key)

    def add_rate_limited(self, key: ObjectKey, min_delay: float = 0) -> None:
        """Have a key worked on after a failure: exponential, capped, with jitter, never before the server allows."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(RETRY_MAX_SECONDS, RETRY_BASE_SECONDS * 2 ** min(failures - 1, 16))
        self.add_after(key, max(min_delay, delay) * _JITTER.uniform(1, 1.3))

    def forget(self, key: ObjectKey) -> None:
        """A key was worked on without failure."""
        self._failures.pop(key, None)

    async def get(self) -> ObjectKey:
        """Take a key; give it back with `done`."""
        while not self._queued_at:
            self._key_added.clear()
            await self._key_added.wait()
        key = self._select_queue().popleft()
        now = time.monotonic()
        counters.WORK_QUEUE_SECONDS.observe(now - self._queued_at.pop(key))
        self._processing_since[key] = now
        return key

    def done(self, key: ObjectKey) -> None:
        """The worker has finished with a key."""
        del self._processing_since[key]
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def get_depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._queued_at)

    def has_high_priority(self) -> bool:
        """Whether a key waits that is not routine."""
        return bool(self._high_priority)

    def get_longest_wait(self) -> float:
        """Seconds for which the key that came first has waited."""
        now = time.monotonic()
        return now - next(iter(self._queued_at.values()), now)

    def get_longest_processing(self) -> float:
        """Seconds that the slowest worker has spent on its key."""
        return time.monotonic() - min(self._processing_since.values(), default=time.monotonic())

    def close(self) -> None:
        """Let no timer fire any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _add_due_key(self, key: ObjectKey) -> None:
        del self._timers[key]
        self.add(key, low_priority=True)

    def _select_queue(self) -> _FairQueue:
        """Fresh keys first, but now and then a routine one, so that it waits long at most."""
        self._turn = (self._turn + 1) % _LOW_PRIORITY_TURN
        preferred, fallback = (
            (self._high_priority, self._low_priority) if self._turn else (self._low_priority, self._high_priority)
        )
        return preferred or fallback
