"""Leader election does not depend on other clocks and tolerates lost responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.namespace_harness import LEASE_NAME

from finetune_operator.kube.client import FINETUNEJOBS, NotLeaderError
from finetune_operator.kube.leader_election import LeaderElector
from finetune_operator.kube.lease import LeaseLock
from finetune_operator.kube.transport import Transport

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

pytestmark = pytest.mark.cluster

LEASE_SECONDS = 2


class Candidate:
    """A replica that reconciles nothing."""

    def __init__(self, election: LeaderElector) -> None:
        self.election = election
        self.term_count = 0

    async def lead(self) -> None:
        self.term_count += 1
        await asyncio.Event().wait()

    async def is_leader(self) -> bool:
        return self.election.is_leader()

    async def has_led_twice(self) -> bool:
        return self.term_count == 2


@asynccontextmanager
async def _run_candidate(world: NamespaceHarness, identity: str = "me") -> AsyncIterator[Candidate]:
    transport = Transport(5)
    await transport.open()
    candidate = Candidate(LeaderElector(LeaseLock(transport, world.namespace, LEASE_NAME), identity, LEASE_SECONDS))
    task = asyncio.create_task(candidate.election.run(candidate.lead))
    try:
        yield candidate
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await candidate.election.release()
        await transport.close()


def _lease_path(world: NamespaceHarness, name: str = "") -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases"
    return f"{path}/{name}" if name else path


def _build_lease_spec(skew: timedelta) -> dict[str, Any]:
    """Return the spec that a healthy leader with a wrong clock writes."""
    now = (datetime.now(UTC) + skew).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": "other", "leaseDurationSeconds": LEASE_SECONDS, "acquireTime": now, "renewTime": now}


SKEWS = {"an hour behind": timedelta(hours=-1), "an hour ahead": timedelta(hours=1)}


@pytest.mark.parametrize("skew", SKEWS.values(), ids=SKEWS)
async def test_lease_leader_with_wrong_clock_keeps_lease_while_renewing(
    world: NamespaceHarness, skew: timedelta
) -> None:
    await world.call("POST", _lease_path(world), {"metadata": {"name": LEASE_NAME}, "spec": _build_lease_spec(skew)})
    async with _run_candidate(world) as candidate:
        for _ in range(8):
            await asyncio.sleep(LEASE_SECONDS / 4)
            await world.call("PATCH", _lease_path(world, LEASE_NAME), {"spec": _build_lease_spec(skew)})
            assert not candidate.election.is_leader()
        last_renewal = time.monotonic()
        await world.wait_until(candidate.is_leader)
        assert LEASE_SECONDS * 0.9 < time.monotonic() - last_renewal < LEASE_SECONDS * 2
    spec = (await world.call("GET", _lease_path(world, LEASE_NAME)))["spec"]
    assert spec["leaseTransitions"] == 1


async def test_lease_released_is_acquired_at_once(world: NamespaceHarness) -> None:
    async with _run_candidate(world, "first") as first:
        await world.wait_until(first.is_leader)
    assert "holderIdentity" not in (await world.call("GET", _lease_path(world, LEASE_NAME)))["spec"]
    async with _run_candidate(world, "second") as second:
        started = time.monotonic()
        await world.wait_until(second.is_leader)
    assert time.monotonic() - started < LEASE_SECONDS / 2


async def test_lease_renewal_answer_lost_keeps_term(world: NamespaceHarness) -> None:
    async with _run_candidate(world) as candidate:
        await world.wait_until(candidate.is_leader)
        world.proxy.fail_next("PUT", "/leases", 500, after_effect=True)
        await asyncio.sleep(LEASE_SECONDS)
        assert world.proxy.faults == []
        assert (candidate.election.is_leader(), candidate.term_count) == (True, 1)


async def test_lease_deleted_is_recreated(world: NamespaceHarness) -> None:
    async with _run_candidate(world) as candidate:
        await world.wait_until(candidate.is_leader)
        await world.call("DELETE", _lease_path(world, LEASE_NAME))
        await asyncio.sleep(LEASE_SECONDS)
        assert (candidate.election.is_leader(), candidate.term_count) == (True, 1)
    assert await world.call("GET", _lease_path(world, LEASE_NAME))


async def test_lease_holder_changed_by_user_ends_term(world: NamespaceHarness) -> None:
    async with _run_candidate(world) as candidate:
        await world.wait_until(candidate.is_leader)
        await world.call("PATCH", _lease_path(world, LEASE_NAME), {"spec": _build_lease_spec(timedelta())})
        await world.wait_until(lambda: _negate(candidate.is_leader()), LEASE_SECONDS)
        await world.wait_until(candidate.has_led_twice)  # its second term begins after it holds the Lease
        assert candidate.term_count == 2


async def _negate(value: Awaitable[bool]) -> bool:
    return not await value


async def test_election_many_candidates_have_one_leader(world: NamespaceHarness) -> None:
    async with (
        _run_candidate(world, "a") as first, _run_candidate(world, "b") as second, _run_candidate(world, "c") as third,
    ):  # fmt: skip
        for _ in range(LEASE_SECONDS * 20):
            await asyncio.sleep(0.05)
            assert sum(candidate.election.is_leader() for candidate in (first, second, third)) <= 1
        assert first.term_count + second.term_count + third.term_count == 1


async def test_election_leader_slept_past_lease_writes_nothing(world: NamespaceHarness) -> None:
    """The leader wakes and tries to write before it can notice that another replica leads."""

    async def is_leader() -> bool:
        return operator.leader_elector.is_leader()

    async with world.run_operator(lease_seconds=LEASE_SECONDS) as operator:
        await world.wait_until(is_leader)
        before = world.proxy.list_writes()
        time.sleep(LEASE_SECONDS)
        with pytest.raises(NotLeaderError):
            await operator._client.patch_status(FINETUNEJOBS, world.namespace, "bot", {"status": {}})
        assert world.proxy.list_writes() == before
        await world.wait_until(is_leader)
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")


async def test_election_lease_vacant_new_leader_lists_once(world: NamespaceHarness) -> None:
    """If the Lease was released before the first list, that list is complete. Another one could take seconds."""
    async with world.run_operator() as before:
        await world.wait_until(lambda: _is_leader(before))
    async with world.run_operator() as operator:
        await world.wait_until(lambda: _is_leader(operator))
        await world.wait_until(lambda: _has_work_queue(operator))
        assert operator._list_count == 1


async def _is_leader(operator: Manager) -> bool:
    return operator.leader_elector.is_leader()


async def _has_work_queue(operator: Manager) -> bool:
    return operator.workers.queue is not None
