"""Keys that wait for a worker: each at most once, never two workers on one, new work before old, namespaces in turn."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque

from finetune_operator.kube.cache import Key
from finetune_operator.telemetry import counters

RETRY_BASE = 0.5
RETRY_CAP = 300.0
_ROUTINE_TURN = 8
_JITTER = random.SystemRandom()


class _Lane:
    """Keys as they came within a namespace, and namespaces in turn: who has thousands waits for them alone."""

    def __init__(self) -> None:
        self._namespaces: OrderedDict[str, deque[Key]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._namespaces)

    def append(self, key: Key) -> None:
        self._namespaces.setdefault(key[0], deque()).append(key)

    def popleft(self) -> Key:
        namespace, keys = self._namespaces.popitem(last=False)
        key = keys.popleft()
        if keys:
            self._namespaces[namespace] = keys  # behind all others
        return key


class WorkQueue:
    """Like client-go's rate-limited queue, with a second lane. For one event loop."""

    def __init__(self) -> None:
        self._fresh = _Lane()
        self._routine = _Lane()
        self._waiting: dict[Key, float] = {}  # since when
        self._working: dict[Key, float] = {}
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()
        self._turn = 0

    def add(self, key: Key, *, routine: bool = False) -> None:
        """Have a key worked on; if it is being worked on now, once more after that."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = time.monotonic()
            (self._routine if routine else self._fresh).append(key)
            self._wake.set()

    def add_after(self, key: Key, delay: float) -> None:
        """Have a key worked on later, unless it is due earlier anyway."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer and timer.when() <= loop.time() + delay:
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_later(delay, self._due, key)

    def retry(self, key: Key, at_least: float = 0) -> None:
        """Have a key worked on after a failure: exponential, capped, with jitter, never before the server allows."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(RETRY_CAP, RETRY_BASE * 2 ** min(failures - 1, 16))
        self.add_after(key, max(at_least, delay) * _JITTER.uniform(1, 1.3))

    def forget(self, key: Key) -> None:
        """A key was worked on without failure."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Take a key; give it back with `done`."""
        while not self._waiting:
            self._wake.clear()
            await self._wake.wait()
        key = self._lane().popleft()
        now = time.monotonic()
        counters.QUEUE_SECONDS.observe(now - self._waiting.pop(key))
        self._working[key] = now
        return key

    def done(self, key: Key) -> None:
        """The worker has finished with a key."""
        del self._working[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def depth(self) -> int:
        """Keys that wait for a worker."""
        return len(self._waiting)

    def has_fresh(self) -> bool:
        """Whether a key waits that is not routine."""
        return bool(self._fresh)

    def longest_wait(self) -> float:
        """Seconds for which the key that came first has waited."""
        now = time.monotonic()
        return now - next(iter(self._waiting.values()), now)

    def longest_work(self) -> float:
        """Seconds that the slowest worker has spent on its key."""
        return time.monotonic() - min(self._working.values(), default=time.monotonic())

    def close(self) -> None:
        """Let no timer fire any more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _due(self, key: Key) -> None:
        del self._timers[key]
        self.add(key, routine=True)

    def _lane(self) -> _Lane:
        """Fresh keys first, but now and then a routine one, so that it waits long at most."""
        self._turn = (self._turn + 1) % _ROUTINE_TURN
        preferred, other = (self._fresh, self._routine) if self._turn else (self._routine, self._fresh)
        return preferred or other
