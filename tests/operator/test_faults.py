"""One life of a run, disturbed in every way: it ends in the state of an undisturbed one, and nothing is made twice."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from kopf._cogs.clients.errors import APIError
from tests.operator.life import jobs_created, live
from tests.operator.proxies import failure, healthy

if TYPE_CHECKING:
    from tests.operator.proxies import Trouble
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

CALLS = 34  # of an undisturbed life; a test holds it against the real number
FORBIDDEN_SECONDS = 20.0


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """The end of a life that nothing disturbed; made by the first test of this module."""
    return {}


async def test_undisturbed(world: World, undisturbed: dict[str, Any]) -> None:
    async with world.operator():
        undisturbed.update(await live(world))
    assert jobs_created(world) == 2
    assert abs(world.proxy.calls - CALLS) < 8, "CALLS no longer covers a life"
    assert (undisturbed["attempts"], undisturbed["phase"]) == (2, "Complete")


@asynccontextmanager
async def _mortal(world: World, call: int) -> AsyncIterator[None]:
    """An operator that dies before it sees the answer to one call, and the one that follows it."""
    world.proxy.dies_at = call
    done = asyncio.Event()
    living = asyncio.create_task(_lives(world, done))
    try:
        yield
    finally:
        done.set()
        await living


async def _lives(world: World, done: asyncio.Event) -> None:
    async with world.operator():
        while not (world.proxy.died.is_set() or done.is_set()):
            await asyncio.sleep(0.02)
    if world.proxy.died.is_set():
        world.proxy.died.clear()
        world.proxy.dies_at = None
        async with world.operator():
            await done.wait()


@pytest.mark.parametrize("call", range(4, CALLS))  # the first three are lists
async def test_killed_between_any_two_calls(world: World, undisturbed: dict[str, Any], call: int) -> None:
    async with _mortal(world, call):
        assert await live(world) == undisturbed
    names = [each["metadata"]["name"] for each in await world.all("jobs")]
    assert names == ["bot"]


class Troubles:
    """Ways in which an API server misbehaves."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._count = itertools.count()
        self._chance = random.Random(7)

    async def gone_for_a_minute(self, _: web.Request) -> web.StreamResponse | None:
        """From the moment on when there is work."""
        self._begun = self._begun or time.monotonic()
        if 0.3 < time.monotonic() - self._begun < 60:
            raise ConnectionResetError
        return None

    async def forbidding(self, request: web.Request) -> web.StreamResponse | None:
        """All but the lists and watches, from the moment on when there is work."""
        if request.method == "GET" or "/leases" in request.path:
            return None
        self._begun = self._begun or time.monotonic()
        return failure(403) if time.monotonic() - self._begun < FORBIDDEN_SECONDS else None

    async def slow(self, request: web.Request) -> None:
        if "watch" not in request.query:
            await asyncio.sleep(0.4)

    async def refusing(self, request: web.Request) -> web.StreamResponse | None:
        """One request of four, each time for another reason. kopf looks for the kinds once; without them it ends."""
        if "/namespaces/" not in request.path or self._chance.random() > 0.25:
            return None
        statuses = (410, 429, 500, 503) if request.method == "GET" else (409, 429, 500, 503)
        return failure(statuses[next(self._count) % len(statuses)], Retry_After="1")

    async def cutting(self, request: web.Request) -> web.StreamResponse | None:
        """Watches end before they have said anything, three times of four; of these, every other one breaks."""
        number = next(self._count) if "watch" in request.query else 0
        if number % 4 == 0:
            return None
        await asyncio.sleep(0.1)
        if number % 2:
            raise ConnectionResetError
        return web.Response()


TROUBLES = {
    "slow": lambda troubles: troubles.slow,
    "refusing": lambda troubles: troubles.refusing,
    "watches are cut": lambda troubles: troubles.cutting,
    "forbidding": lambda troubles: troubles.forbidding,
    "gone for a minute": lambda troubles: troubles.gone_for_a_minute,
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_an_api_server_in_trouble(world: World, undisturbed: dict[str, Any], trouble: str) -> None:
    world.settings = world.settings.model_copy(update={"resync_interval": 2.0})
    done = asyncio.Event()
    living = asyncio.create_task(_kept_alive(world, TROUBLES[trouble](Troubles()), done))
    try:
        assert await live(world) == undisturbed
    finally:
        world.proxy.trouble = healthy
        done.set()
        await living


async def _kept_alive(world: World, trouble: Trouble, done: asyncio.Event) -> None:
    """As the kubelet does: an operator that has ended, as kopf does after some errors of a watch, is started again; one
    that does not stop in time is killed."""
    while not done.is_set():
        world.proxy.trouble = healthy
        before = len(world.proxy.seen)
        with suppress(APIError, TimeoutError):
            async with world.operator() as operator:
                # kopf looks for the kinds once; without them it ends, which a probe notices only after a minute.
                while ("GET", world.path("finetunejobs")) not in world.proxy.seen[before:]:
                    await asyncio.sleep(0.05)
                world.proxy.trouble = trouble
                while not done.is_set() and _is_well(operator):
                    await asyncio.sleep(0.5)


def _is_well(operator: Manager) -> bool:
    try:
        operator.check_liveness()
    except RuntimeError:
        return False
    return True
