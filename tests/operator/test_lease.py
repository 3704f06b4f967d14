"""What a candidate makes of the Lease: others' clocks say nothing, a word that was lost costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import kopf
import pytest
from tests.operator.world import LEASE

from finetune_operator.kopf_settings import log_in
from finetune_operator.kube.client import NotLeaderError
from finetune_operator.kube.leader_election import LeaderElector
from finetune_operator.kube.lease import LeaseLock
from finetune_operator.kube.transport import Transport

if TYPE_CHECKING:
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = pytest.mark.cluster

SECONDS = 2


class Candidate:
    """A replica without any work."""

    def __init__(self, election: LeaderElector) -> None:
        self.election = election
        self.terms = 0

    async def lead(self) -> None:
        self.terms += 1
        await asyncio.Event().wait()

    async def is_leader(self) -> bool:
        return self.election.is_leader()


@asynccontextmanager
async def _candidate(world: World, identity: str = "me") -> AsyncIterator[Candidate]:
    transport = Transport(5)
    transport.open(lambda: log_in(kopf.OperatorSettings()))
    candidate = Candidate(LeaderElector(LeaseLock(transport, world.namespace, LEASE), identity, SECONDS))
    task = asyncio.create_task(candidate.election.run(candidate.lead))
    try:
        yield candidate
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await candidate.election.release()
        await transport.close()


def _path(world: World, name: str = "") -> str:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases"
    return f"{path}/{name}" if name else path


def _spec(skew: timedelta) -> dict[str, Any]:
    """As a healthy leader writes it whose clock is wrong."""
    now = (datetime.now(UTC) + skew).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"holderIdentity": "other", "leaseDurationSeconds": SECONDS, "acquireTime": now, "renewTime": now}


SKEWS = {"an hour behind": timedelta(hours=-1), "an hour ahead": timedelta(hours=1)}


@pytest.mark.parametrize("skew", SKEWS.values(), ids=SKEWS)
async def test_a_leader_whose_clock_is_wrong_keeps_the_lease_as_long_as_it_lives(world: World, skew: timedelta) -> None:
    await world.call("POST", _path(world), {"metadata": {"name": LEASE}, "spec": _spec(skew)})
    async with _candidate(world) as candidate:
        for _ in range(8):
            await asyncio.sleep(SECONDS / 4)
            await world.call("PATCH", _path(world, LEASE), {"spec": _spec(skew)})
            assert not candidate.election.is_leader()
        died = time.monotonic()
        await world.until(candidate.is_leader)
        assert SECONDS * 0.9 < time.monotonic() - died < SECONDS * 2
    spec = (await world.call("GET", _path(world, LEASE)))["spec"]
    assert spec["leaseTransitions"] == 1


async def test_a_lease_that_was_given_back_is_free_at_once(world: World) -> None:
    async with _candidate(world, "first") as first:
        await world.until(first.is_leader)
    assert "holderIdentity" not in (await world.call("GET", _path(world, LEASE)))["spec"]
    async with _candidate(world, "second") as second:
        began = time.monotonic()
        await world.until(second.is_leader)
    assert time.monotonic() - began < SECONDS / 2


async def test_a_renewal_whose_answer_was_lost_costs_no_term(world: World) -> None:
    async with _candidate(world) as candidate:
        await world.until(candidate.is_leader)
        world.proxy.fail("PUT", "/leases", 500, late=True)
        await asyncio.sleep(SECONDS)
        assert world.proxy.faults == []
        assert (candidate.election.is_leader(), candidate.terms) == (True, 1)


async def test_a_lease_that_is_deleted_is_made_again(world: World) -> None:
    async with _candidate(world) as candidate:
        await world.until(candidate.is_leader)
        await world.call("DELETE", _path(world, LEASE))
        await asyncio.sleep(SECONDS)
        assert (candidate.election.is_leader(), candidate.terms) == (True, 1)
    assert await world.call("GET", _path(world, LEASE))


async def test_a_lease_that_was_given_to_another_by_hand_is_believed(world: World) -> None:
    async with _candidate(world) as candidate:
        await world.until(candidate.is_leader)
        await world.call("PATCH", _path(world, LEASE), {"spec": _spec(timedelta())})
        await world.until(lambda: _not(candidate.is_leader()), SECONDS)
        await world.until(candidate.is_leader)
        assert candidate.terms == 2


async def _not(value: Awaitable[bool]) -> bool:
    return not await value


async def test_of_many_candidates_one_leads(world: World) -> None:
    async with (
        _candidate(world, "a") as one, _candidate(world, "b") as two, _candidate(world, "c") as three,
    ):  # fmt: skip
        for _ in range(SECONDS * 20):
            await asyncio.sleep(0.05)
            assert sum(each.election.is_leader() for each in (one, two, three)) <= 1
        assert one.terms + two.terms + three.terms == 1


async def test_a_leader_that_slept_past_its_time_writes_nothing(world: World) -> None:
    """In the same breath in which it wakes, before it could have learnt that another leads."""

    async def is_leader() -> bool:
        return operator.leader_elector.is_leader()

    async with world.operator(lease_seconds=SECONDS) as operator:
        await world.until(is_leader)
        before = world.proxy.writes()
        time.sleep(SECONDS)
        with pytest.raises(NotLeaderError):
            await operator._client.patch_status(world.namespace, "bot", {"status": {}})
        assert world.proxy.writes() == before
        await world.until(is_leader)
        await world.apply()
        await world.reason("JobCreated")


async def test_who_leads_after_nobody_lists_once(world: World) -> None:
    """What was given back before the first list is told by it whole, and a list of thousands takes seconds."""
    async with world.operator() as before:
        await world.until(lambda: _leads(before))
    async with world.operator() as operator:
        await world.until(lambda: _leads(operator))
        await world.until(lambda: _works(operator))
        assert operator._list_count == 1


async def _leads(operator: Manager) -> bool:
    return operator.leader_elector.is_leader()


async def _works(operator: Manager) -> bool:
    return operator.workers.queue is not None
