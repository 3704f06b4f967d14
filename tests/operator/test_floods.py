"""One FineTuneJob that changes without end, many at once, and monstrous ones: the others are served meanwhile."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.operator.bodies import manifest
from tests.operator.world import Refused

if TYPE_CHECKING:
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

UPDATES = 200
OTHERS = 20
PATIENCE = 5.0  # seconds for one among all this; alone it takes a fraction of one


async def _is_made(world: World, name: str) -> bool:
    return bool(await world.get("jobs", name))


async def _served(world: World, name: str) -> float:
    """Seconds from its creation to its Job."""
    began = time.monotonic()
    await world.apply(name)
    await world.until(lambda: _is_made(world, name))
    return time.monotonic() - began


async def _update(world: World) -> None:
    for number in range(UPDATES):
        labels = {"number": str(number)}
        await world.call("PATCH", world.path("finetunejobs", "noisy"), {"metadata": {"labels": labels}})


async def test_one_that_changes_without_end_holds_up_nobody(world: World) -> None:
    async with world.operator():
        await world.apply("noisy")
        await world.reason("JobCreated", "noisy")
        since = len(world.proxy.writes())
        noise = asyncio.create_task(_update(world))
        waits = [await _served(world, f"other-{number}") for number in range(OTHERS)]
        await noise
        await asyncio.sleep(0.5)
    assert max(waits) < PATIENCE
    assert [path for _, path in world.proxy.writes()[since:] if "noisy" in path] == []


def _deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


MEGABYTE = "x" * 1_000_000
MONSTERS: dict[str, dict[str, Any]] = {
    "a megabyte in a field": manifest("monster", spec={"output": {"uri": f"s3://bucket/{MEGABYTE}"}}),
    "a megabyte in a field that nobody knows": manifest("monster", spec={"unknown": MEGABYTE}),
    "a megabyte of sources": manifest(
        "monster", spec={"dataset": {"sources": [{"uri": f"s3://bucket/{number:0990}"} for number in range(1000)]}}
    ),
    "as many annotations as are allowed": manifest("monster", annotations={"a": "x" * 262_000}),
    "one more": manifest("monster", annotations={"a": "x" * 262_145}),
    "900 levels": manifest("monster", spec={"unknown": _deep(900)}),
    "900 levels in the status": {**manifest("monster"), "status": _deep(900)},
    "900 levels in an annotation": manifest("monster", annotations={"a": '{"x":' * 900 + "1" + "}" * 900}),
}
TAKEN = {
    "a megabyte in a field that nobody knows",  # and dropped
    "as many annotations as are allowed",
    "900 levels",  # and dropped
    "900 levels in the status",  # and dropped
    "900 levels in an annotation",
}


async def _is_taken(world: World, body: dict[str, Any]) -> bool:
    try:
        await world.call("POST", world.path("finetunejobs"), body | {"metadata": {**body["metadata"], "namespace": ""}})
    except Refused:
        return False
    return True


async def test_monsters_are_refused_or_served_like_others(world: World) -> None:
    taken = set()
    async with world.operator():
        for number, (name, body) in enumerate(MONSTERS.items()):
            if await _is_taken(world, body):
                taken.add(name)
                await world.until(lambda: _is_made(world, "monster"))
                await world.delete("finetunejobs", "monster")
                await world.delete("jobs", "monster")
            assert await _served(world, f"other-{number}") < PATIENCE
    assert taken == TAKEN
