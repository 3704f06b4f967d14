"""Leader election with a Lease, by the algorithm of client-go.

Clocks of different machines are never compared. A candidate acquires the Lease when it has not observed a change for
the complete lease duration. A leader stops some seconds earlier, measured from before its last renewal was sent. Both
use their own monotonic clock.
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
"""Fraction of the lease duration after which a leader without a renewal stops. The rest covers writes in flight."""
_RETRY_PERIOD_FRACTION = 0.2
"""Fraction of the lease duration between the starts of two attempts."""
_MAX_RETRY_PERIOD = 2.0
"""Maximum seconds between the starts of two attempts, and thus until a released Lease is acquired."""
_REQUEST_TIMEOUT_FRACTION = 0.3
"""Fraction of the lease duration for one attempt."""


class LeaderElector:
    """Takes part in the election of one leader among all replicas."""

    def __init__(self, lease_lock: LeaseLock, identity: str, lease_duration: int) -> None:
        self._lease_lock = lease_lock
        self._identity = identity
        self._lease_duration = lease_duration
        self._retry_period = min(lease_duration * _RETRY_PERIOD_FRACTION, _MAX_RETRY_PERIOD)
        self._held_lease: Body | None = None
        """The Lease as this replica last wrote it. None if it is not the leader or the last write failed."""
        self._observed_spec: Body | None = None
        self._observed_at = 0.0
        """When the Lease was first observed with its current spec."""
        self._leader_until = 0.0
        self._initial_spec: Body | None = None
        """The spec that `observe_initial_leader` read."""
        self._replaced_spec: Body | None = None
        """The spec before this replica acquired the Lease."""
        self.last_contact = time.monotonic()
        """When the Lease was last read or written."""

    def is_leader(self) -> bool:
        """Return whether this replica is the leader, so that no other can be."""
        return time.monotonic() < self._leader_until

    async def observe_initial_leader(self) -> None:
        """Remember the current leader. To be called before the first list."""
        with suppress(ApiError, *CONNECTION_ERRORS):
            self._initial_spec = _get_spec(await self._lease_lock.read())

    def was_vacant(self) -> bool:
        """Return whether there was no other leader from `observe_initial_leader` until this replica became it."""
        initial_spec = self._initial_spec
        return (
            initial_spec is not None and initial_spec == self._replaced_spec and not initial_spec.get("holderIdentity")
        )

    async def run(self, start_leading: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run `start_leading` whenever elected, and cancel it when the Lease is lost. Ends only with its error."""
        log.info("attempting to acquire the Lease as %s", self._identity)
        while True:
            await self._acquire()
            log.info("became leader as %s", self._identity)
            leading_task = asyncio.create_task(start_leading())
            try:
                await self._renew(leading_task)
            finally:
                self._leader_until = 0.0
                leading_task.cancel()
                await asyncio.wait({leading_task})
            log.warning("stopped leading: failed to renew the Lease in time as %s", self._identity)

    async def release(self) -> None:
        """Release the Lease, so that no replica waits until it expires. No writes are allowed afterwards."""
        self._held_lease, self._leader_until = None, 0.0
        with suppress(ApiError, *CONNECTION_ERRORS):
            async with asyncio.timeout(self._lease_duration * _REQUEST_TIMEOUT_FRACTION):
                current_lease = await self._lease_lock.read()
                spec = dict(_get_spec(current_lease))
                if spec.pop("holderIdentity", None) == self._identity:
                    await self._lease_lock.create_or_update(current_lease, spec)
                    log.info("released the Lease as %s", self._identity)

    async def _acquire(self) -> None:
        self._held_lease = None
        while not self.is_leader():
            started = time.monotonic()
            await self._try_acquire_or_renew()
            if not self.is_leader():
                await asyncio.sleep(self._compute_retry_delay(started))

    def _compute_retry_delay(self, attempt_started: float) -> float:
        """Return the seconds until the next attempt, or until another replica's Lease expires if that is sooner."""
        now, next_attempt = time.monotonic(), attempt_started + self._retry_period
        wake_at = min(next_attempt, self._compute_expiry()) if self._compute_expiry() > now else next_attempt
        return max(0.05, wake_at - now)

    async def _renew(self, leading_task: asyncio.Task[None]) -> None:
        """Renew the Lease until it is lost. Raises if `leading_task` ends by itself."""
        attempt_started = time.monotonic()
        while self.is_leader():
            delay = min(attempt_started + self._retry_period, self._leader_until) - time.monotonic()
            finished, _ = await asyncio.wait({leading_task}, timeout=max(0.05, delay))
            if finished:
                leading_task.result()
                raise RuntimeError("the leader's task ended unexpectedly")
            attempt_started = time.monotonic()
            if self.is_leader():
                await self._try_acquire_or_renew()

    async def _try_acquire_or_renew(self) -> None:
        """Acquire or renew the Lease if possible."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._lease_duration * _REQUEST_TIMEOUT_FRACTION):
                written = await self._write_lease()
        except (ApiError, *CONNECTION_ERRORS) as error:
            self._held_lease = None  # the next attempt reads what was written
            if not (isinstance(error, ApiError) and error.status == 409):
                log.warning("failed to acquire or renew the Lease: %s: %s", type(error).__name__, error)
            return
        self.last_contact = time.monotonic()
        if written:
            self._held_lease, self._leader_until = written, started + self._lease_duration * _RENEW_DEADLINE_FRACTION

    async def _write_lease(self) -> Body | None:
        """Return the written Lease, or None if another replica holds it."""
        current_lease = self._held_lease or await self._lease_lock.read()
        if current_lease and not self._held_lease and not self._is_free(current_lease):
            self._leader_until = 0.0  # the Lease of this leader was deleted or edited
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
        """Return the time when the observed Lease will have been unchanged for its duration."""
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
