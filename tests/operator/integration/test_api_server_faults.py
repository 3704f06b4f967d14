"""A run with faults of the API server ends in the same state as one without, and nothing is created twice."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from kopf._cogs.clients.errors import APIError
from tests.support.operator.fault_proxy import build_error_response, pass_through
from tests.support.operator.full_lifecycle import count_jobs_created, play_full_lifecycle

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import Interceptor
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

REQUESTS_PER_LIFECYCLE = 44  # of a run without faults; a test compares it with the real number
FORBIDDEN_SECONDS = 20.0


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """The final state of a run without faults, set by the first test of this module."""
    return {}


async def test_operator_without_faults_completes_lifecycle(
    world: NamespaceHarness, undisturbed: dict[str, Any]
) -> None:
    async with world.run_operator():
        undisturbed.update(await play_full_lifecycle(world))
    assert count_jobs_created(world) == 2
    assert abs(world.proxy.request_count - REQUESTS_PER_LIFECYCLE) < 8, "CALLS no longer covers a life"
    assert (undisturbed["attempts"], undisturbed["phase"]) == (2, "Complete")


@asynccontextmanager
async def _run_operator_killed_at(world: NamespaceHarness, call: int) -> AsyncIterator[None]:
    """Run an operator that is killed before it receives one response, and then its successor."""
    world.proxy.kill_at_request = call
    finished = asyncio.Event()
    operator_task = asyncio.create_task(_run_until_killed_then_restart(world, finished))
    try:
        yield
    finally:
        finished.set()
        await operator_task


async def _run_until_killed_then_restart(world: NamespaceHarness, finished: asyncio.Event) -> None:
    async with world.run_operator():
        while not (world.proxy.killed.is_set() or finished.is_set()):
            await asyncio.sleep(0.02)
    if world.proxy.killed.is_set():
        world.proxy.killed.clear()
        world.proxy.kill_at_request = None
        async with world.run_operator():
            await finished.wait()


@pytest.mark.parametrize("call", range(6, REQUESTS_PER_LIFECYCLE))  # the first five are lists
async def test_operator_killed_at_any_request_reaches_same_state(
    world: NamespaceHarness, undisturbed: dict[str, Any], call: int
) -> None:
    async with _run_operator_killed_at(world, call):
        assert await play_full_lifecycle(world) == undisturbed
    names = [job["metadata"]["name"] for job in await world.list_objects("jobs")]
    assert names == ["bot"]


class ApiServerFaults:
    """Faults of an API server."""

    def __init__(self) -> None:
        self._started_at: float | None = None
        self._count = itertools.count()
        self._random = random.Random(7)

    async def unreachable_for_a_minute(self, _: web.Request) -> web.StreamResponse | None:
        """The API server is unreachable for a minute, soon after the first intercepted request."""
        self._started_at = self._started_at or time.monotonic()
        if 0.3 < time.monotonic() - self._started_at < 60:
            raise ConnectionResetError
        return None

    async def forbid_writes(self, request: web.Request) -> web.StreamResponse | None:
        """All writes except those of the Lease are refused for a while, from the first one on."""
        if request.method == "GET" or "/leases" in request.path:
            return None
        self._started_at = self._started_at or time.monotonic()
        return build_error_response(403) if time.monotonic() - self._started_at < FORBIDDEN_SECONDS else None

    async def delay_answers(self, request: web.Request) -> None:
        if "watch" not in request.query:
            await asyncio.sleep(0.4)

    async def reject_some_requests(self, request: web.Request) -> web.StreamResponse | None:
        """One request in four is rejected, with varying status codes. Discovery works, because kopf ends without it."""
        if "/namespaces/" not in request.path or self._random.random() > 0.25:
            return None
        statuses = (410, 429, 500, 503) if request.method == "GET" else (409, 429, 500, 503)
        return build_error_response(statuses[next(self._count) % len(statuses)], Retry_After="1")

    async def cut_watches(self, request: web.Request) -> web.StreamResponse | None:
        """Three of four watches end before their first event, two of them with a broken connection."""
        number = next(self._count) if "watch" in request.query else 0
        if number % 4 == 0:
            return None
        await asyncio.sleep(0.1)
        if number % 2:
            raise ConnectionResetError
        return web.Response()


FAULTS: dict[str, Callable[[ApiServerFaults], Interceptor]] = {
    "slow": lambda faults: faults.delay_answers,
    "rejects some requests": lambda faults: faults.reject_some_requests,
    "cuts watches": lambda faults: faults.cut_watches,
    "forbids writes": lambda faults: faults.forbid_writes,
    "unreachable for a minute": lambda faults: faults.unreachable_for_a_minute,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_operator_api_server_faulty_reaches_same_state(
    world: NamespaceHarness, undisturbed: dict[str, Any], fault: str
) -> None:
    world.settings = world.settings.model_copy(update={"resync_interval": 2.0})
    finished = asyncio.Event()
    operator_task = asyncio.create_task(_run_operator_restarting(world, FAULTS[fault](ApiServerFaults()), finished))
    try:
        assert await play_full_lifecycle(world) == undisturbed
    finally:
        world.proxy.interceptor = pass_through
        finished.set()
        await operator_task


async def _run_operator_restarting(world: NamespaceHarness, fault: Interceptor, finished: asyncio.Event) -> None:
    """As the kubelet does: an operator that has ended, as kopf does after some errors of a watch, is started again; one
    that does not stop in time is killed."""
    while not finished.is_set():
        world.proxy.interceptor = pass_through
        before = len(world.proxy.requests)
        with suppress(APIError, TimeoutError):
            async with world.run_operator() as operator:
                # kopf discovers the kinds once. Without them it ends, which a probe detects only after a minute.
                while ("GET", world.path("finetunejobs")) not in world.proxy.requests[before:]:
                    await asyncio.sleep(0.05)
                world.proxy.interceptor = fault
                while not finished.is_set() and _is_well(operator):
                    await asyncio.sleep(0.5)


def _is_well(operator: Manager) -> bool:
    try:
        operator.check_liveness()
    except RuntimeError:
        return False
    return True
