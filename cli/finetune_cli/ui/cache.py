"""Caches what is read from the cluster and the store, so that many tabs cost as much as one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from finetune_operator.client.errors import ClientError

ValueT = TypeVar("ValueT")
CacheKey = tuple[str, ...]
MAX_ENTRIES = 256
ERROR_SECONDS = 2.0
"""Errors are kept for a short time, so that a page recovers soon."""
ERROR_FACTOR = 10
"""An error that took long to appear is kept for this multiple of its time, so that pages do not wait for it again."""


@dataclass
class _Entry(Generic[ValueT]):
    """A loaded value or the error of the attempt, until it expires."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    expiry: float = float("-inf")
    value: ValueT | None = None
    error: ClientError | None = None


class TimedCache(Generic[ValueT]):
    """Keeps values for a time. Of several threads that need a value, one loads it and the others wait.

    Args:
        clock: returns the time in seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[CacheKey, _Entry[ValueT]] = OrderedDict()

    def get(self, key: CacheKey, load: Callable[[], ValueT], seconds: float) -> ValueT:
        """Return the value of a key, which `load` returns at most once in so many seconds.

        Raises the `ClientError` of `load`, which is cached for a shorter time.
        """
        entry = self._find_entry(key)
        with entry.lock:
            if entry.expiry <= self._clock():
                self._fill(entry, load, seconds)
            if entry.error:
                raise entry.error
            return entry.value  # type: ignore[return-value]  # _fill has set it, and None is a value

    def _find_entry(self, key: CacheKey) -> _Entry[ValueT]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > MAX_ENTRIES:
                self._entries.popitem(last=False)
            return entry

    def _fill(self, entry: _Entry[ValueT], load: Callable[[], ValueT], seconds: float) -> None:
        start = self._clock()
        try:
            entry.value, entry.error = load(), None
        except ClientError as error:
            entry.value, entry.error = None, error
            seconds = max(ERROR_SECONDS, ERROR_FACTOR * (self._clock() - start))
        entry.expiry = self._clock() + seconds
