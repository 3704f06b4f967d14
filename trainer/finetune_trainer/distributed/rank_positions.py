"""Positions of the ranks: how many collective operations each rank has started.

A rank that hangs lets all others wait, and only the position distinguishes it from those that wait. The positions are
in the store of torch's rendezvous, which the launcher of the first node serves, so they can be read while ranks hang.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from finetune_trainer.distributed import collectives, topology

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import PrefixStore

_MAX_INTERVAL_SECONDS = 5.0
_STORE_TIMEOUT_SECONDS = 10.0
_ABSENT_KEY = "absent"
"""Key of the ranks that the others wait for. Its first value is final, so that all ranks agree."""


@dataclass(frozen=True)
class Position:
    """What a rank has published last."""

    beat: int
    """Number of times that the rank has published. A rank does not respond while it stays the same."""
    operations: int
    """Number of collective operations that the rank has started."""
    host: str
    """Host name of the node, which is the name of the pod."""

    @classmethod
    def parse(cls, content: bytes) -> Position:
        """Read a position from the store."""
        beat, operations, host = content.decode(errors="replace").split(" ", 2)
        return cls(int(beat), int(operations), host)

    def to_text(self) -> str:
        """Return the position for the store."""
        return f"{self.beat} {self.operations} {self.host}"


@dataclass
class RankPositions:
    """Publishes the position of this rank, and finds the ranks that the others wait for."""

    interval: float
    """Seconds between two publications."""
    _beat: int = 0
    _store: PrefixStore | None = None
    _store_lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def read_seconds(self) -> float:
        """Seconds after an announcement until every rank that responds has read it."""
        return max(1.5 * self.interval, 0.5)

    @property
    def report_seconds(self) -> float:
        """Seconds after an announcement until the ranks that the others wait for have ended."""
        return 2 * self._compare_seconds

    @property
    def _compare_seconds(self) -> float:
        """Seconds in which every rank that responds publishes its position."""
        return max(2.5 * self.interval, 1.0)

    def publish(self) -> None:
        """Publish the position of this rank: for its launcher always, for the other ranks once it has joined them."""
        self._beat += 1
        alive_path = topology.alive_path()
        if alive_path and self._beat == 1:
            alive_path.write_text(str(os.getpid()))
        elif alive_path:
            with suppress(FileNotFoundError):  # this rank is ending
                os.utime(alive_path)
        if store := self._open_store():
            position = Position(self._beat, collectives.count_operations(), socket.gethostname())
            store.set(str(topology.rank()), position.to_text())

    def announce_absent_ranks(self) -> bool:
        """Compare the positions, and announce to all ranks which of them the others wait for.

        Returns false if the ranks cannot be compared, because the store does not respond or this rank has not joined.
        """
        announced = threading.Event()
        threading.Thread(target=self._announce, args=(announced,), name="announce", daemon=True).start()
        return announced.wait(self._compare_seconds + _STORE_TIMEOUT_SECONDS)

    def read_absent_ranks(self) -> list[int] | None:
        """Return the ranks that the others were found to wait for, or None if no rank has announced this.

        The list is empty if all ranks respond and wait in the same operation.
        """
        store = self._open_store()
        if store is None or not store.check([_ABSENT_KEY]):
            return None
        return [int(rank) for rank in store.get(_ABSENT_KEY).split()]

    def describe_ranks(self, ranks: Sequence[int]) -> str:
        """Return ranks with their nodes, as the end of a sentence."""
        positions = self._read_positions()
        return " and ".join(
            topology.describe_rank(rank, positions[rank].host if rank in positions else None) for rank in ranks
        )

    def _announce(self, announced: threading.Event) -> None:
        store = self._open_store()
        if store is None:
            return
        earlier = self._read_positions()
        time.sleep(self._compare_seconds)
        absent = find_absent_ranks(earlier, self._read_positions(), topology.world_size())
        store.compare_set(_ABSENT_KEY, "", " ".join(map(str, absent)) or " ")
        announced.set()

    def _read_positions(self) -> dict[int, Position]:
        """Return the positions of the ranks that have published one."""
        store = self._open_store()
        ranks = [rank for rank in range(topology.world_size()) if store and store.check([str(rank)])]
        return {rank: Position.parse(store.get(str(rank))) for rank in ranks if store}

    def _open_store(self) -> PrefixStore | None:
        """Return the store of all ranks, or None before this rank has joined them."""
        with self._store_lock:
            if self._store is None and collectives.is_initialized():
                self._store = collectives.open_store(timedelta(seconds=_STORE_TIMEOUT_SECONDS))
            return self._store


def find_absent_ranks(earlier: dict[int, Position], later: dict[int, Position], world_size: int) -> list[int]:
    """Return the ranks that did not respond between two readings, or have started fewer operations than another."""
    most_operations = max((position.operations for position in later.values()), default=0)
    return [
        rank
        for rank in range(world_size)
        if rank not in later
        or later[rank].operations < most_operations
        or (rank in earlier and earlier[rank].beat == later[rank].beat)
    ]


@contextmanager
def publish_positions(
    stall_seconds: float, on_absent: Callable[[RankPositions, list[int]], None]
) -> Iterator[RankPositions]:
    """Publish the position of this rank while the block runs.

    `on_absent` is called in another thread when a rank announces which ranks the others wait for.
    """
    positions = RankPositions(min(stall_seconds / 20, _MAX_INTERVAL_SECONDS))
    finished = threading.Event()
    threading.Thread(target=_publish, args=(positions, finished, on_absent), name="positions", daemon=True).start()
    try:
        yield positions
    finally:
        finished.set()
        if alive_path := topology.alive_path():
            alive_path.unlink(missing_ok=True)


def _publish(
    positions: RankPositions, finished: threading.Event, on_absent: Callable[[RankPositions, list[int]], None]
) -> None:
    while not finished.wait(positions.interval):
        try:
            positions.publish()
            absent = positions.read_absent_ranks()
        except RuntimeError:  # the first node has ended, which the next collective operation finds
            return
        if absent is not None:
            on_absent(positions, absent)
