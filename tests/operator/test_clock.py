"""The clock of the operator's machine jumps: nothing is ended or deleted that is not due by the objects' own times."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import pytest
from tests.operator.phases import ended

if TYPE_CHECKING:
    from tests.operator.bodies import Body
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

HALF_AN_HOUR = 1800
JUMPS = {"an hour ahead": timedelta(hours=1), "an hour behind": timedelta(hours=-1)}
_SKEW = 30.0  # seconds that a slow machine may take


def _ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _since(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()


def _jump(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """For everything in the operator that asks its machine what time it is."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Wrong:
            return cls.fromtimestamp((datetime.now(UTC) + by).timestamp(), tz)

    for name, module in list(sys.modules.items()):
        if name.startswith("finetune_operator.") and vars(module).get("datetime") is datetime:
            monkeypatch.setattr(module, "datetime", Wrong)


async def _finish(world: World, name: str, ttl: int) -> None:
    await world.apply(name, {"ttlSecondsAfterFinished": ttl})
    await world.pod(name)
    await world.kubelet(ended(0, "Completed"), "Succeeded", f"{name}-1")
    await world.job_ends("Complete", name=name, at=_ago(0))
    await world.reason("Completed", name)


async def _start(world: World) -> None:
    """One that waits for its pod to start and one that trains, each with a deadline in half an hour."""
    for name in ("waits", "trains"):
        deadlines = {"startupDeadlineSeconds": HALF_AN_HOUR, "activeDeadlineSeconds": HALF_AN_HOUR}
        await world.apply(name, deadlines)
        await world.pod(name)
        await world.job_starts(_ago(10), name)
    await world.reason("PodPending", "waits")
    await world.kubelet({"running": {"startedAt": _ago(5)}}, name="trains-1")
    await world.until(lambda: _limit(world))


async def _limit(world: World) -> int:
    limit: int = (await world.get("jobs", "trains"))["spec"].get("activeDeadlineSeconds", 0)
    return limit


async def _statuses(world: World) -> dict[str, Body]:
    return {each["metadata"]["name"]: each["status"] for each in await world.all("finetunejobs")}


def _times(status: Body) -> list[str]:
    own = [status[key] for key in ("completionTime", "accountedTime", "startTime") if key in status]
    return own + [each["lastTransitionTime"] for each in status["conditions"]]


@pytest.mark.parametrize("by", JUMPS.values(), ids=JUMPS)
async def test_a_clock_that_jumps_makes_nothing_due(
    world: World, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    async with world.operator() as operator:
        await _finish(world, "ended", HALF_AN_HOUR)
        await _start(world)
        limit = await _limit(world)
        with monkeypatch.context() as patched:
            _jump(patched, by)
            await operator.resync()
            await _finish(world, "short", 1)
            await world.until(lambda: _is_gone(world, "short"))
            await world.change({"suspend": True}, "trains")  # so that its seconds are counted
            await world.reason("Suspending", "trains")
        await operator.resync()
        await asyncio.sleep(0.5)
        statuses = await _statuses(world)
        assert {name: each["phase"] for name, each in statuses.items()} == {
            "ended": "Complete", "waits": "Pending", "trains": "Running",
        }  # fmt: skip
        assert 0 <= statuses["trains"]["activeSeconds"] < _SKEW
        assert abs(await _limit(world) - limit) < _SKEW
        times = [_since(time) for name in ("waits", "trains") for time in _times(statuses[name])]
        assert all(-2 < seconds < _SKEW for seconds in times)


async def _is_gone(world: World, name: str) -> bool:
    return name not in await _statuses(world)
