"""A jump of the local clock ends or deletes nothing before it is due by the times in the objects."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import seconds_ago
from tests.support.operator.run_phases import build_outcome_state

if TYPE_CHECKING:
    from tests.support.operator.builders import Body
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

HALF_AN_HOUR = 1800
JUMPS = {"an hour ahead": timedelta(hours=1), "an hour behind": timedelta(hours=-1)}
_TOLERANCE = 30.0  # seconds that a slow machine may take


def _seconds_since(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()


def _shift_clock(monkeypatch: pytest.MonkeyPatch, offset: timedelta) -> None:
    """Shift the local clock for all code of the operator."""

    class ShiftedDatetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> ShiftedDatetime:
            return cls.fromtimestamp((datetime.now(UTC) + offset).timestamp(), tz)

    for name, module in list(sys.modules.items()):
        if name.startswith("finetune_operator.") and vars(module).get("datetime") is datetime:
            monkeypatch.setattr(module, "datetime", ShiftedDatetime)


async def _run_to_completion(world: NamespaceHarness, name: str, ttl: int) -> None:
    await world.create_finetunejob(name, {"ttlSecondsAfterFinished": ttl})
    await world.create_pod(name)
    await world.report_container_state(build_outcome_state(0, "Completed"), "Succeeded", f"{name}-1")
    await world.report_job_end("Complete", name=name, end_time=seconds_ago(0))
    await world.wait_for_reason("Completed", name)


async def _start_runs_with_deadlines(world: NamespaceHarness) -> None:
    """Start a run whose pod is pending and one that trains, each with a deadline in half an hour."""
    for name in ("waits", "trains"):
        deadlines = {"startupDeadlineSeconds": HALF_AN_HOUR, "activeDeadlineSeconds": HALF_AN_HOUR}
        await world.create_finetunejob(name, deadlines)
        await world.create_pod(name)
        await world.report_job_start(seconds_ago(10), name)
    await world.wait_for_reason("PodPending", "waits")
    await world.report_container_state({"running": {"startedAt": seconds_ago(5)}}, name="trains-1")
    await world.wait_until(lambda: _get_active_deadline(world))


async def _get_active_deadline(world: NamespaceHarness) -> int:
    limit: int = (await world.get("jobs", "trains"))["spec"].get("activeDeadlineSeconds", 0)
    return limit


async def _get_statuses(world: NamespaceHarness) -> dict[str, Body]:
    return {job["metadata"]["name"]: job["status"] for job in await world.list_objects("finetunejobs")}


def _list_times(status: Body) -> list[str]:
    top_level_times = [status[key] for key in ("completionTime", "accountedTime", "startTime") if key in status]
    return top_level_times + [condition["lastTransitionTime"] for condition in status["conditions"]]


@pytest.mark.parametrize("by", JUMPS.values(), ids=JUMPS)
async def test_operator_clock_jumps_keeps_deadlines_and_ttl(
    world: NamespaceHarness, monkeypatch: pytest.MonkeyPatch, by: timedelta
) -> None:
    async with world.run_operator() as operator:
        await _run_to_completion(world, "ended", HALF_AN_HOUR)
        await _start_runs_with_deadlines(world)
        limit = await _get_active_deadline(world)
        with monkeypatch.context() as patched:
            _shift_clock(patched, by)
            await operator.resync()
            await _run_to_completion(world, "short", 1)
            await world.wait_until(lambda: _is_gone(world, "short"))
            await world.patch_spec({"suspend": True}, "trains")  # so that its seconds are counted
            await world.wait_for_reason("Suspending", "trains")
        await operator.resync()
        await asyncio.sleep(0.5)
        statuses = await _get_statuses(world)
        assert {name: status["phase"] for name, status in statuses.items()} == {
            "ended": "Complete", "waits": "Pending", "trains": "Running",
        }  # fmt: skip
        assert 0 <= statuses["trains"]["activeSeconds"] < _TOLERANCE
        assert abs(await _get_active_deadline(world) - limit) < _TOLERANCE
        times = [_seconds_since(time) for name in ("waits", "trains") for time in _list_times(statuses[name])]
        assert all(-2 < seconds < _TOLERANCE for seconds in times)


async def _is_gone(world: NamespaceHarness, name: str) -> bool:
    return name not in await _get_statuses(world)
