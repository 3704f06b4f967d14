"""FineTuneSchedules with their whole reconciler on a real API server: nothing fires twice or is promoted wrongly."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.living_schedule import LivingSchedule, ScheduleChaos
from tests.support.operator.promotion_harness import open_client
from tests.support.operator.schedule_harness import MINUTELY

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]


@pytest.fixture
async def bot(world: NamespaceHarness) -> AsyncIterator[LivingSchedule]:
    """Return a namespace without a schedule."""
    async with open_client(world) as client:
        yield LivingSchedule(world, client)


async def _run_once(bot: LivingSchedule, quality: float) -> str:
    """Let the next minute's run complete. Return its name."""
    bot.advance()
    await bot.settle_all()
    (name,) = await bot.list_unfinished_runs()
    await bot.finish_run(name, quality)
    return name


async def test_schedule_request_during_a_promotion_waits_for_the_new_champion(bot: LivingSchedule) -> None:
    await bot.create_comparing(schedule=MINUTELY)
    first = await _run_once(bot, 0.1)
    bot.advance()
    await bot.patch({"runAt": bot.now.isoformat()})
    operator = bot.build_operator()
    assert await operator.settle() == 2  # the task that writes the alias
    assert await bot.list_run_names() == [first]
    await bot.settle_all(operator)
    (second,) = await bot.list_unfinished_runs()
    assert (await bot.get_status())["runs"][0]["champion"] == first
    await bot.finish_run(second, 0.2)
    await bot.settle_all()
    assert (await bot.get_status())["champion"]["run"] == second


async def test_schedule_refused_run_is_compared_with_the_champion_of_its_creation(bot: LivingSchedule) -> None:
    await bot.create_comparing(schedule="@yearly", runAt="2020-01-01T00:00:00Z")
    first = await _run_once(bot, 0.1)
    await bot.settle_all()
    await bot.patch({"runAt": "2020-01-02T00:00:00Z"})
    await _run_once(bot, 0.2)
    await bot.settle_all()
    bot.proxy.fail_next("POST", "finetunejobs", 403)
    await bot.patch({"runAt": "2020-01-03T00:00:00Z"})
    bot.advance()
    await bot.settle_all()
    await bot.patch({"champion": {"run": first}})
    await bot.settle_all()
    (name,) = await bot.list_unfinished_runs()
    assert (await bot.read_run(name))["spec"]["evaluation"]["baselines"][0]["adapterURI"].endswith(first)
    assert (await bot.get_status())["runs"][0]["champion"] == first


async def test_schedule_champion_deleted_from_s3_is_stalled_until_a_run_is_set(bot: LivingSchedule) -> None:
    await bot.create_comparing(schedule=MINUTELY)
    first = await _run_once(bot, 0.1)
    second = await _run_once(bot, 0.2)
    bot.advance()
    await bot.settle_all()
    (failed,) = await bot.list_unfinished_runs()
    error = f"evaluation.baselines[0].adapterURI: s3://bucket/bot/{second}/ at s3: no object has this prefix"
    await bot.end_run(failed, "Failed", reason="ModelNotFound", message=error)
    await bot.settle_all()
    assert await bot.get_condition("Stalled") == ("True", "ChampionUnusable")
    status = await bot.get_status()
    (run,) = [each for each in status["runs"] if each["name"] == failed]
    assert run["decision"] == "ChampionUnusable"
    assert f"Restore s3://bucket/bot/{second}, or set spec.champion.run" in run["message"]
    assert error in run["message"]
    await bot.patch({"champion": {"run": first}})
    await bot.settle_all()
    assert await bot.get_condition("Stalled") == ("False", "Active")


async def test_schedule_lost_status_trains_once_and_never_replaces_the_champion_silently(bot: LivingSchedule) -> None:
    await bot.create_comparing(schedule=MINUTELY)
    first = await _run_once(bot, 0.9)
    await _run_once(bot, 0.1)
    await bot.settle_all()
    before = len(bot.created)
    await bot.lose_status()
    await bot.settle_all()
    for _ in range(3):
        for name in await bot.list_unfinished_runs():
            await bot.finish_run(name, 0.2)
        await bot.settle_all()
    assert len(bot.created) <= before + 1
    (alias,) = bot.alias.objects.values()
    assert alias["run"] == first
    assert await bot.get_condition("Promoted") == ("False", "AliasConflict")
    await bot.patch({"champion": {"run": first}})
    await bot.settle_all()
    assert (await bot.get_status())["champion"]["run"] == first


SEEDS = os.environ.get("SCHEDULE_SEEDS", "7").split(",")


@pytest.mark.parametrize("seed", SEEDS)
async def test_schedule_random_faults_and_edits_lose_and_repeat_nothing(bot: LivingSchedule, seed: str) -> None:
    await bot.create_comparing(schedule=MINUTELY)
    chaos = ScheduleChaos(bot, Random(seed))
    for _ in range(40):
        await chaos.act()
        await _check(bot, chaos)
    await _recover(bot)
    status = await bot.get_status()
    champion, alias_uri = status.get("champion"), status.get("aliasURI")
    assert "promoting" not in status, chaos.log
    if champion and alias_uri:
        assert bot.alias.objects[alias_uri]["run"] == champion["run"], chaos.log
    assert all(run.get("decision") for run in status["runs"] if run.get("phase")), chaos.log


async def _check(bot: LivingSchedule, chaos: ScheduleChaos) -> None:
    assert bot.list_wrong_promotions() == [], chaos.log
    names = await bot.list_run_names()
    gone = set(bot.created) - set(names)
    runs = (await bot.get_status()).get("runs", [])
    assert len({run["name"] for run in runs}) == len(runs), chaos.log
    bot.deleted |= gone
    assert not bot.deleted & set(names), (chaos.log, "a deleted run was created again")
    minutes = Counter(name.removeprefix("bot-") for name in bot.created)
    assert max(minutes.values(), default=1) == 1, chaos.log


async def _recover(bot: LivingSchedule) -> None:
    """Let everything work again: end what is active, and promote."""
    await bot.patch({"champion": None, "suspend": True, "alias": {"uri": "s3://bucket/bot/last.json"}})
    for _ in range(3):
        for name in await bot.list_unfinished_runs():
            await bot.finish_run(name, 0.5)
        await bot.settle_all()
        bot.advance(3601)
