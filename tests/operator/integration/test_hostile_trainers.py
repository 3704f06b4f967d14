"""Pods that answer requests for progress in hostile ways cost neither the Lease nor another tenant's time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.api_server import find_free_port
from tests.support.operator.builders import Body, get_cache
from tests.support.operator.cached_runs import store_run
from tests.support.operator.hostile_pods import build_address, run_hostile_pods
from tests.support.operator.namespace_harness import LEASE_NAME

from finetune_operator.controller.finetunejob import progress_poller

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

HOSTILE_PODS = 128
MAX_JOB_SECONDS = 3.0
"""Maximum number of seconds until another tenant's Job; without the hostile pods it takes 0.1 s."""


async def _measure_seconds_until_job(world: NamespaceHarness, name: str) -> float:
    async def find_job() -> Body:
        return await world.get("jobs", name)

    started = time.monotonic()
    await world.create_finetunejob(name)
    await world.wait_until(find_job, 30)
    return time.monotonic() - started


async def _get_lease(world: NamespaceHarness) -> Body:
    return await world.call("GET", f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/{LEASE_NAME}")


async def test_operator_hostile_trainers_delay_no_other_tenant(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = find_free_port()
    monkeypatch.setattr(progress_poller, "PROGRESS_PORT", port)
    with run_hostile_pods(port):
        async with world.run_operator() as operator:
            await _measure_seconds_until_job(world, "first")
            for number in range(HOSTILE_PODS):
                address = build_address("endless early hints", number)
                store_run(get_cache(operator), f"evil-{number % 2}", f"bot-{number}", address)
            waits = [await _measure_seconds_until_job(world, f"other-{number}") for number in range(10)]
            lease = await _get_lease(world)
            assert operator.leader_elector.is_leader()
    assert max(waits) < MAX_JOB_SECONDS
    assert lease["spec"]["leaseTransitions"] == 0
