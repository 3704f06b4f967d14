"""Failed writes, killed operators and two leaders at once lose no work; liveness reports hanging workers."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_key
from tests.support.operator.namespace_harness import build_lease_rules

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

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
    "create is throttled": ("POST", "/jobs", 429, False, {"Retry_After": "1"}),
    "create's answer is lost": ("POST", "/jobs", 500, True, {}),
    "create conflicts with nothing": ("POST", "/jobs", 409, False, {}),
    "status fails": ("PATCH", "/status", 500, False, {}),
    "status is throttled": ("PATCH", "/status", 429, False, {"Retry_After": "1"}),
    "status conflicts": ("PATCH", "/status", 409, False, {}),
    "status' answer is lost": ("PATCH", "/status", 500, True, {}),
    "event fails": ("POST", "/events", 500, False, {}),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=FAULTS.keys())
async def test_operator_write_fails_is_retried(world: NamespaceHarness, case: tuple[Any, ...]) -> None:
    method, part, status, late, headers = case
    world.proxy.fail_next(method, part, status, late, **headers)
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
    assert len(await world.list_objects("jobs")) == 1
    assert world.proxy.faults == []


@pytest.mark.parametrize("writes", range(1, 4))
async def test_operator_killed_after_write_creates_no_duplicate(world: NamespaceHarness, writes: int) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_until(lambda: _has_written(world, writes))
    async with world.run_operator():
        await world.wait_for_reason("JobCreated")
    assert len(await world.list_objects("jobs")) == 1


async def _has_written(world: NamespaceHarness, count: int) -> bool:
    return sum(method != "GET" for method, _ in world.proxy.requests) >= count


async def test_two_leaders_at_once_create_one_job(world: NamespaceHarness) -> None:
    """A Lease prevents two leaders, but leader election cannot prevent writes in flight."""
    await world.grant_role(build_lease_rules("other"), "other")
    async with world.run_operator() as first, world.run_operator(lease_name="other") as second:
        await world.wait_until(lambda: _are_leaders(first, second))
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(ENDED, "Failed")
        await world.report_job_end("Failed", "PodFailurePolicy")
        await world.wait_for_reason("DataInvalid")
    assert len(await world.list_objects("jobs")) == 1


async def _are_leaders(*operators: Manager) -> bool:
    return all(operator.leader_elector.is_leader() for operator in operators)


async def test_liveness_fails_when_lists_workers_or_election_stall(world: NamespaceHarness) -> None:
    async with world.run_operator() as operator:
        assert operator.check_liveness()["listedSecondsAgo"] < 20
        operator.namespaces.states[world.namespace].last_contact -= 3600
        with pytest.raises(RuntimeError, match="no list"):
            operator.check_liveness()
        await operator.resync()
        await world.wait_until(lambda: _are_leaders(operator))
        assert operator.check_liveness()["role"] == "leader"
        assert operator.workers.queue
        operator.workers.queue._processing_since[build_key("hangs")] = time.monotonic() - 3600
        with pytest.raises(RuntimeError, match="busy"):
            operator.check_liveness()
        del operator.workers.queue._processing_since[build_key("hangs")]
        operator._tasks[0].cancel()
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="election"):
            operator.check_liveness()
