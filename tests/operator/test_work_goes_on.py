"""What happens to the work when a write fails, an operator dies, or two work at once; and what the probe tells."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.operator.world import lease_rules

if TYPE_CHECKING:
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = pytest.mark.cluster

ENDED = {
    "terminated": {
        "exitCode": 42,
        "message": json.dumps({"reason": "DataInvalid", "message": "row 7"}),
        "startedAt": "2026-11-23T08:00:05Z",
        "finishedAt": "2026-11-23T08:09:05Z",
    }
}
FAULTS = {
    "create fails": ("POST", "/jobs", 500, False, {}),
    "create is told to wait": ("POST", "/jobs", 429, False, {"Retry_After": "1"}),
    "create's answer is lost": ("POST", "/jobs", 500, True, {}),
    "create conflicts with nothing": ("POST", "/jobs", 409, False, {}),
    "status fails": ("PATCH", "/status", 500, False, {}),
    "status is told to wait": ("PATCH", "/status", 429, False, {"Retry_After": "1"}),
    "status conflicts": ("PATCH", "/status", 409, False, {}),
    "status' answer is lost": ("PATCH", "/status", 500, True, {}),
    "event fails": ("POST", "/events", 500, False, {}),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_at_each_write_costs_a_retry(world: World, case: tuple[Any, ...]) -> None:
    method, part, status, late, headers = case
    world.proxy.fail(method, part, status, late, **headers)
    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
    assert len(await world.all("jobs")) == 1
    assert world.proxy.faults == []


@pytest.mark.parametrize("writes", range(1, 4))
async def test_an_operator_that_dies_after_a_write_leaves_no_harm(world: World, writes: int) -> None:
    async with world.operator():
        await world.apply()
        await world.until(lambda: _written(world, writes))
    async with world.operator():
        await world.reason("JobCreated")
    assert len(await world.all("jobs")) == 1


async def _written(world: World, count: int) -> bool:
    return sum(method != "GET" for method, _ in world.proxy.seen) >= count


async def test_two_operators_at_once_do_the_work_once(world: World) -> None:
    """Never so with one Lease; what an election cannot rule out is writes that are on their way."""
    await world.allow(lease_rules("other"), "other")
    async with world.operator() as one, world.operator(lease_name="other") as other:
        await world.until(lambda: _lead(one, other))
        await world.apply()
        await world.pod()
        await world.kubelet(ENDED, "Failed")
        await world.job_ends("Failed", "PodFailurePolicy")
        await world.reason("DataInvalid")
    assert len(await world.all("jobs")) == 1


async def _lead(*operators: Manager) -> bool:
    return all(each.leader_elector.is_leader() for each in operators)


async def test_the_probe_tells_progress_from_standstill(world: World) -> None:
    async with world.operator() as operator:
        assert operator.check_liveness()["listedSecondsAgo"] < 20
        operator.namespaces.states[world.namespace].last_contact -= 3600
        with pytest.raises(RuntimeError, match="no list"):
            operator.check_liveness()
        await operator.resync()
        await world.until(lambda: _lead(operator))
        assert operator.check_liveness()["role"] == "leader"
        assert operator.workers.queue
        operator.workers.queue._processing_since["team", "hangs"] = time.monotonic() - 3600
        with pytest.raises(RuntimeError, match="busy"):
            operator.check_liveness()
        del operator.workers.queue._processing_since["team", "hangs"]
        operator._tasks[0].cancel()
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="election"):
            operator.check_liveness()
