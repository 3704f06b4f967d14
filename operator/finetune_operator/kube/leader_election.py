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

from finetune_operator.api.objects import Body
from finetune_operator.kube.lease import LeaseLock
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError

log = logging.getLogger(__name__)

_RENEW_DEADLINE_FRACTION = 0.7
"""Of a Lease's duration, after which a leader that could not renew it stops: the rest is for writes on their way."""
_RETRY_PERIOD_FRACTION = 0.2
"""Of a Lease's duration, between the beginnings of two attempts; no longer than a free Lease may stay so."""
_MAX_RETRY_PERIOD = 2.0
_REQUEST_TIMEOUT_FRACTION = 0.3
"""Of a Lease's duration, for one attempt."""


class LeaderElector:
    """Takes part in the election of one leader."""

    def __init__(self, lease_lock: LeaseLock, identity: str, lease_duration: int) -> None:
        self._lease_lock = lease_lock
        self._identity = identity
        self._lease_duration = lease_duration
        self._retry_period = min(lease_duration * _RETRY_PERIOD_FRACTION, _MAX_RETRY_PERIOD)
        self._held_lease: Body | None = None
        """The Lease as this replica last wrote it; none if it does not lead, or does not know."""
        self._observed_spec: Body | None = None
        self._observed_at = 0.0
        """When what is seen of the Lease was first seen so."""
        self._leader_until = 0.0
        self._initial_spec: Body | None = None
        """The Lease as `look` found it."""
        self._replaced_spec: Body | None = None
        """The Lease as it was when this replica took it."""
        self.last_contact = time.monotonic()
        """When the API server last told of the Lease."""

    def is_leader(self) -> bool:
        """Whether nobody else can lead now."""
        return time.monotonic() < self._leader_until

    async def observe_initial_leader(self) -> None:
        """Note who leads, before what they did is looked at."""
        with suppress(ApiError, *CONNECTION_ERRORS):
            self._initial_spec = _get_spec(await self._lease_lock.read())

    def was_vacant(self) -> bool:
        """Whether nobody else has led from that look until this replica did."""
        initial_spec = self._initial_spec
        return (
            initial_spec is not None and initial_spec == self._replaced_spec and not initial_spec.get("holderIdentity")
        )

    async def run(self, start_leading: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Lead whenever elected; what leads is cancelled when the Lease is lost. Ends only with an error of `lead`."""
        log.info("%s waits for the Lease", self._identity)
        while True:
            await self._acquire()
            log.info("%s leads", self._identity)
            leading_task = asyncio.create_task(start_leading())
            try:
                await self._renew(leading_task)
            finally:
                self._leader_until = 0.0
                leading_task.cancel()
                await asyncio.wait({leading_task})
            log.warning("%s does not lead any more: the Lease could not be renewed in time", self._identity)

    async def release(self) -> None:
        """Leave the Lease to whoever asks next, so that nobody waits until it expires. Nothing may be written after."""
        self._held_lease, self._leader_until = None, 0.0
        with suppress(ApiError, *CONNECTION_ERRORS):
            async with asyncio.timeout(self._lease_duration * _REQUEST_TIMEOUT_FRACTION):
                current_lease = await self._lease_lock.read()
                spec = dict(_get_spec(current_lease))
                if spec.pop("holderIdentity", None) == self._identity:
                    await self._lease_lock.create_or_update(current_lease, spec)
                    log.info("%s has given the Lease back", self._identity)

    async def _acquire(self) -> None:
        self._held_lease = None
        while not self.is_leader():
            started = time.monotonic()
            await self._try_acquire_or_renew()
            if not self.is_leader():
                await asyncio.sleep(self._compute_retry_delay(started))

    def _compute_retry_delay(self, attempt_started: float) -> float:
        """Until the next attempt, or until another's Lease expires if that is sooner."""
        now, next_attempt = time.monotonic(), attempt_started + self._retry_period
        wake_at = min(next_attempt, self._compute_expiry()) if self._compute_expiry() > now else next_attempt
        return max(0.05, wake_at - now)

    async def _renew(self, leading_task: asyncio.Task[None]) -> None:
        """Until the Lease is lost. Raises if what leads has ended by itself."""
        attempt_started = time.monotonic()
        while self.is_leader():
            delay = min(attempt_started + self._retry_period, self._leader_until) - time.monotonic()
            finished, _ = await asyncio.wait({leading_task}, timeout=max(0.05, delay))
            if finished:
                leading_task.result()
                raise RuntimeError("the leader's work has ended")
            attempt_started = time.monotonic()
            if self.is_leader():
                await self._try_acquire_or_renew()

    async def _try_acquire_or_renew(self) -> None:
        """Take the Lease, or keep it, if that may be."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._lease_duration * _REQUEST_TIMEOUT_FRACTION):
                written = await self._write_lease()
        except (ApiError, *CONNECTION_ERRORS) as error:
            self._held_lease = None  # whatever was written is read next time
            if not (isinstance(error, ApiError) and error.status == 409):
                log.warning("no word about the Lease: %s: %s", type(error).__name__, error)
            return
        self.last_contact = time.monotonic()
        if written:
            self._held_lease, self._leader_until = written, started + self._lease_duration * _RENEW_DEADLINE_FRACTION

    async def _write_lease(self) -> Body | None:
        """The Lease as it was written; None if it is another's."""
        current_lease = self._held_lease or await self._lease_lock.read()
        if current_lease and not self._held_lease and not self._is_free(current_lease):
            self._leader_until = 0.0  # somebody deleted or edited it
            return None
        written = await self._lease_lock.create_or_update(
            current_lease, self._build_lease_spec(_get_spec(current_lease))
        )
        if not self._held_lease:
            self._replaced_spec = _get_spec(current_lease)
        return written

    def _is_free(self, current_lease: Body) -> bool:
        spec = _get_spec(current_lease)
        if spec != self._observed_spec:
            self._observed_spec, self._observed_at = spec, time.monotonic()
        holder = spec.get("holderIdentity")
        return not holder or holder == self._identity or time.monotonic() >= self._compute_expiry()

    def _compute_expiry(self) -> float:
        """When the Lease of another has not changed for its duration."""
        observed_duration: float = (self._observed_spec or {}).get("leaseDurationSeconds", self._lease_duration)
        return self._observed_at + observed_duration

    def _build_lease_spec(self, previous_spec: Body) -> Body:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_renewal = previous_spec.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._lease_duration,
            "acquireTime": previous_spec.get("acquireTime", now) if is_renewal else now,
            "renewTime": now,
            "leaseTransitions": previous_spec.get("leaseTransitions", 0)
            + (0 if is_renewal or not previous_spec else 1),
        }


def _get_spec(lease: Body | None) -> Body:
    spec: Body = lease.get("spec", {}) if lease else {}
    return spec
