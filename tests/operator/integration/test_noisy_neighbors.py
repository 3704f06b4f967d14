"""FineTuneJobs that change all the time, are many or are huge do not delay others."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import build_manifest
from tests.support.operator.namespace_harness import RequestRejected

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

UPDATES = 200
OTHER_RUNS = 20
MAX_SECONDS = 5.0  # for one run among the others; without them it takes less than a second


async def _has_job(world: NamespaceHarness, name: str) -> bool:
    return bool(await world.get("jobs", name))


async def _seconds_until_job(world: NamespaceHarness, name: str) -> float:
    """Return the seconds from the creation of a FineTuneJob to that of its Job."""
    started = time.monotonic()
    await world.create_finetunejob(name)
    await world.wait_until(lambda: _has_job(world, name))
    return time.monotonic() - started


async def _update_labels_repeatedly(world: NamespaceHarness) -> None:
    for number in range(UPDATES):
        labels = {"number": str(number)}
        await world.call("PATCH", world.path("finetunejobs", "noisy"), {"metadata": {"labels": labels}})


async def test_operator_run_updated_endlessly_delays_no_other(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob("noisy")
        await world.wait_for_reason("JobCreated", "noisy")
        since = len(world.proxy.list_writes())
        noise = asyncio.create_task(_update_labels_repeatedly(world))
        waits = [await _seconds_until_job(world, f"other-{number}") for number in range(OTHER_RUNS)]
        await noise
        await asyncio.sleep(0.5)
    assert max(waits) < MAX_SECONDS
    assert [path for _, path in world.proxy.list_writes()[since:] if "noisy" in path] == []


def _nest(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"x": value}
    return value


MEGABYTE = "x" * 1_000_000
MONSTERS: dict[str, dict[str, Any]] = {
    "a megabyte in a field": build_manifest("monster", spec={"output": {"uri": f"s3://bucket/{MEGABYTE}"}}),
    "a megabyte in an unknown field": build_manifest("monster", spec={"unknown": MEGABYTE}),
    "a megabyte of sources": build_manifest(
        "monster", spec={"dataset": {"sources": [{"uri": f"s3://bucket/{number:0990}"} for number in range(1000)]}}
    ),
    "as many annotations as are allowed": build_manifest("monster", annotations={"a": "x" * 262_000}),
    "one more": build_manifest("monster", annotations={"a": "x" * 262_145}),
    "900 levels": build_manifest("monster", spec={"unknown": _nest(900)}),
    "900 levels in the status": {**build_manifest("monster"), "status": _nest(900)},
    "900 levels in an annotation": build_manifest("monster", annotations={"a": '{"x":' * 900 + "1" + "}" * 900}),
}
ACCEPTED_MONSTERS = {
    "a megabyte in an unknown field",  # and dropped
    "as many annotations as are allowed",
    "900 levels",  # and dropped
    "900 levels in the status",  # and dropped
    "900 levels in an annotation",
}


async def _is_accepted(world: NamespaceHarness, body: dict[str, Any]) -> bool:
    try:
        await world.call("POST", world.path("finetunejobs"), body | {"metadata": {**body["metadata"], "namespace": ""}})
    except RequestRejected:
        return False
    return True


async def test_operator_oversized_object_is_rejected_or_served(world: NamespaceHarness) -> None:
    accepted = set()
    async with world.run_operator():
        for number, (name, body) in enumerate(MONSTERS.items()):
            if await _is_accepted(world, body):
                accepted.add(name)
                await world.wait_until(lambda: _has_job(world, "monster"))
                await world.delete("finetunejobs", "monster")
                await world.delete("jobs", "monster")
            assert await _seconds_until_job(world, f"other-{number}") < MAX_SECONDS
    assert accepted == ACCEPTED_MONSTERS
