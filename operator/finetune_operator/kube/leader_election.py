"""Which replica works: the one that holds a Lease, by the algorithm of client-go.

Clocks of different machines are never compared. A candidate takes the Lease when it has not seen it change for its
whole duration; a leader stops some seconds before that, counted from before its last renewal was sent. Both count by
their own monotonic clock.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from finetune_operator.kube.lease import Body, Lease
from finetune_operator.kube.transport import NO_ANSWER, ApiError

log = logging.getLogger(__name__)

_DEADLINE = 0.7
"""Of a Lease's duration, after which a leader that could not renew it stops: the rest is for writes on their way."""
_RETRY = 0.2
"""Of a Lease's duration, between the beginnings of two attempts; no longer than a free Lease may stay so."""
_LONGEST_RETRY = 2.0
_PATIENCE = 0.3
"""Of a Lease's duration, for one attempt."""


class Election:
    """Takes part in the election of one leader."""

    def __init__(self, lease: Lease, identity: str, seconds: int) -> None:
        self._lease = lease
        self._identity = identity
        self._seconds = seconds
        self._retry = min(seconds * _RETRY, _LONGEST_RETRY)
        self._mine: Body | None = None
        """The Lease as this replica last wrote it; none if it does not lead, or does not know."""
        self._seen: Body | None = None
        self._seen_at = 0.0
        """When what is seen of the Lease was first seen so."""
        self._until = 0.0
        self._looked: Body | None = None
        """The Lease as `look` found it."""
        self._replaced: Body | None = None
        """The Lease as it was when this replica took it."""
        self.answered = time.monotonic()
        """When the API server last told of the Lease."""

    def is_leader(self) -> bool:
        """Whether nobody else can lead now."""
        return time.monotonic() < self._until

    async def look(self) -> None:
        """Note who leads, before what they did is looked at."""
        with suppress(ApiError, *NO_ANSWER):
            self._looked = _spec(await self._lease.read())

    def nobody_led(self) -> bool:
        """Whether nobody else has led from that look until this replica did."""
        looked = self._looked
        return looked is not None and looked == self._replaced and not looked.get("holderIdentity")

    async def run(self, lead: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Lead whenever elected; what leads is cancelled when the Lease is lost. Ends only with an error of `lead`."""
        log.info("%s waits for the Lease", self._identity)
        while True:
            await self._stand_by()
            log.info("%s leads", self._identity)
            term = asyncio.create_task(lead())
            try:
                await self._renew(term)
            finally:
                self._until = 0.0
                term.cancel()
                await asyncio.wait({term})
            log.warning("%s does not lead any more: the Lease could not be renewed in time", self._identity)

    async def resign(self) -> None:
        """Leave the Lease to whoever asks next, so that nobody waits until it expires. Nothing may be written after."""
        self._mine, self._until = None, 0.0
        with suppress(ApiError, *NO_ANSWER):
            async with asyncio.timeout(self._seconds * _PATIENCE):
                found = await self._lease.read()
                spec = dict(_spec(found))
                if spec.pop("holderIdentity", None) == self._identity:
                    await self._lease.write(found, spec)
                    log.info("%s has given the Lease back", self._identity)

    async def _stand_by(self) -> None:
        self._mine = None
        while not self.is_leader():
            began = time.monotonic()
            await self._attempt()
            if not self.is_leader():
                await asyncio.sleep(self._pause(began))

    def _pause(self, began: float) -> float:
        """Until the next attempt, or until another's Lease expires if that is sooner."""
        now, due = time.monotonic(), began + self._retry
        wake = min(due, self._expiry()) if self._expiry() > now else due
        return max(0.05, wake - now)

    async def _renew(self, term: asyncio.Task[None]) -> None:
        """Until the Lease is lost. Raises if what leads has ended by itself."""
        began = time.monotonic()
        while self.is_leader():
            pause = min(began + self._retry, self._until) - time.monotonic()
            done, _ = await asyncio.wait({term}, timeout=max(0.05, pause))
            if done:
                term.result()
                raise RuntimeError("the leader's work has ended")
            began = time.monotonic()
            if self.is_leader():
                await self._attempt()

    async def _attempt(self) -> None:
        """Take the Lease, or keep it, if that may be."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds * _PATIENCE):
                written = await self._take()
        except (ApiError, *NO_ANSWER) as error:
            self._mine = None  # whatever was written is read next time
            if not (isinstance(error, ApiError) and error.status == 409):
                log.warning("no word about the Lease: %s: %s", type(error).__name__, error)
            return
        self.answered = time.monotonic()
        if written:
            self._mine, self._until = written, began + self._seconds * _DEADLINE

    async def _take(self) -> Body | None:
        """The Lease as it was written; None if it is another's."""
        found = self._mine or await self._lease.read()
        if found and not self._mine and not self._is_free(found):
            self._until = 0.0  # somebody deleted or edited it
            return None
        written = await self._lease.write(found, self._claim(_spec(found)))
        if not self._mine:
            self._replaced = _spec(found)
        return written

    def _is_free(self, found: Body) -> bool:
        spec = _spec(found)
        if spec != self._seen:
            self._seen, self._seen_at = spec, time.monotonic()
        holder = spec.get("holderIdentity")
        return not holder or holder == self._identity or time.monotonic() >= self._expiry()

    def _expiry(self) -> float:
        """When the Lease of another has not changed for its duration."""
        duration: float = (self._seen or {}).get("leaseDurationSeconds", self._seconds)
        return self._seen_at + duration

    def _claim(self, before: Body) -> Body:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        stays = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._seconds,
            "acquireTime": before.get("acquireTime", now) if stays else now,
            "renewTime": now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (0 if stays or not before else 1),
        }


def _spec(lease: Body | None) -> Body:
    spec: Body = lease.get("spec", {}) if lease else {}
    return spec
