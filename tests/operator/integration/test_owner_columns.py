"""What `kubectl get` prints for a FineTuneSchedule and a FineTuneSweep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.schedule_harness import MINUTELY, ScheduleWorld, open_schedule_world

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


async def _read_row(world: NamespaceHarness, plural: str = "finetuneschedules") -> dict[str, Any]:
    """Return the only row, by column. Columns of `-o wide` begin with a plus sign."""
    table = await world.read_table(plural)
    names = [("+" if column["priority"] else "") + column["name"] for column in table["columnDefinitions"]]
    (row,) = table["rows"]
    return dict(zip(names, row["cells"], strict=True))


async def _settle_and_read(world: NamespaceHarness, bot: ScheduleWorld) -> list[Any]:
    await bot.build_operator().settle()
    row = await _read_row(world)
    return [row[name] for name in ("Reason", "Active", "Last Run", "Decision", "Champion", "Up-To-Date")]


async def test_columns_of_schedule_tell_state_run_and_champion(world: NamespaceHarness) -> None:
    async with open_schedule_world(world) as bot:
        await bot.create(schedule=MINUTELY, suspend=True)
        assert await _settle_and_read(world, bot) == ["Suspended", None, None, None, None, "False"]
        await bot.patch({"suspend": False})
        name = bot.get_name()
        assert await _settle_and_read(world, bot) == ["Active", name, name, None, None, "False"]
        await bot.end_run(name)
        bot.advance(1)
        await bot.patch({"champion": {"run": name}, "suspend": True})
        assert await _settle_and_read(world, bot) == ["Suspended", None, name, "Promoted", name, "Unknown"]
        await bot.patch({"timeZone": "Mars/Base"})
        assert (await _settle_and_read(world, bot))[0] == "InvalidSchedule"


async def test_columns_of_schedule_wide_shows_next_time(world: NamespaceHarness) -> None:
    async with open_schedule_world(world) as bot:
        await bot.create(schedule="0 3 * * 1")
        await bot.build_operator().settle()
        next_time = (await bot.get_status())["nextScheduleTime"]
    assert (await _read_row(world))["+Next"] == next_time
