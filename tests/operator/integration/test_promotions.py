"""The champion of a FineTuneSchedule: comparisons, the alias, rollbacks and faults, on a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.promotion_harness import PromotionHarness, open_client
from tests.support.operator.schedule_samples import build_change, build_comparison, build_digest, build_result

from finetune_operator.api.schedule import FineTuneScheduleStatus
from finetune_operator.controller.finetuneschedule.promoter import PromotionResult
from finetune_operator.kube.transport import ApiError
from finetune_operator.resources.task_job import read_task_config

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]
BETTER = [build_comparison(build_change())]
WORSE = [build_comparison(build_change(low=-0.05))]
UNREACHABLE = {"reason": "StorageUnreachable", "message": "no response"}


@pytest.fixture
async def bot(world: NamespaceHarness) -> AsyncIterator[PromotionHarness]:
    """Return a schedule without runs."""
    async with open_client(world) as client:
        bot = PromotionHarness(world, client, "bot")
        await bot.create()
        yield bot


def _get_promoted(status: FineTuneScheduleStatus) -> tuple[str, str]:
    (condition,) = status.conditions
    return condition.status, condition.reason


def _list_decisions(status: FineTuneScheduleStatus) -> dict[str, str | None]:
    return {run.name: run.decision for run in status.runs}


async def test_promotion_better_run_replaces_champion_and_worse_run_does_not(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    status = await bot.read_status()
    assert _get_promoted(status) == ("True", "Promoted")
    assert status.champion
    assert (status.champion.run, status.champion.model_uri, bot.alias_run) == ("bot-1", "hf://org/name", "bot-1")
    assert status.report_uri == "s3://bucket/bot/champion.html"

    finetunejob = await bot.begin_run("bot-2")
    baseline = {"name": "champion", "adapterURI": "s3://bucket/bot/bot-1", "digest": build_digest("bot-1")}
    assert finetunejob["spec"]["evaluation"]["baselines"] == [baseline]
    await bot.end_run("bot-2", baselines=BETTER)
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status)) == ("bot-2", ("True", "Promoted"))
    assert [champion.run for champion in status.champions] == ["bot-2", "bot-1"]
    promotion = bot.alias.promotions[-1]
    assert promotion.predecessor
    assert (promotion.predecessor.run, promotion.overwrite, promotion.metrics["accuracy"]) == ("bot-1", False, 0.9)

    worse = build_comparison(build_change(low=-0.05), name="bot-2")
    await bot.add_run("bot-3", baselines=[worse])
    await bot.add_run("bot-4", phase="Failed")
    result = await bot.settle()
    assert (result.requeue_after, result.stalled) == (None, None)
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), status.runs_since_promotion) == ("bot-2", ("False", "NotBetter"), 1)
    assert "[-0.05, +0.18]: the lower end must be above 0" in status.conditions[0].message
    assert _list_decisions(status) == {
        "bot-4": "RunFailed", "bot-3": "NotBetter", "bot-2": "Promoted", "bot-1": "Promoted"
    }  # fmt: skip
    assert len(await bot.list_task_jobs()) == 2
    assert len(await bot.list_task_jobs("report")) == 3


async def test_promotion_without_alias_needs_no_task(bot: PromotionHarness) -> None:
    await bot.edit({"alias": None})
    await bot.add_run("bot-1")
    await bot.settle()
    assert _get_promoted(await bot.read_status()) == ("True", "Promoted")
    assert await bot.world.list_objects("jobs") == []
    await bot.edit({"alias": {"uri": "s3://bucket/bot/champion.json"}})
    await bot.settle()
    assert bot.alias_run == "bot-1"


async def test_promotion_pinned_champion_stays_until_and_after_the_pin_is_removed(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    await bot.add_run("bot-2", baselines=BETTER)
    await bot.settle()
    await bot.edit({"champion": {"run": "bot-1"}})
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), status.runs_since_promotion) == ("bot-1", ("False", "Pinned"), 0)
    assert bot.alias.promotions[-1].overwrite

    await bot.add_run("bot-3", baselines=BETTER)
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, status.runs[0].decision) == ("bot-1", "Pinned")
    assert "By the rules: Promoted" in status.runs[0].message

    await bot.edit({"champion": None})
    await bot.settle()
    assert bot.alias_run == "bot-1"
    await bot.add_run("bot-4", baselines=BETTER)
    await bot.settle()
    assert bot.alias_run == "bot-4"


async def test_promotion_manual_mode_promotes_an_approved_run_whose_finetunejob_is_gone(bot: PromotionHarness) -> None:
    await bot.edit({"promotion": {"mode": "manual"}})
    await bot.add_run("bot-1")
    await bot.settle()
    assert _get_promoted(await bot.read_status()) == ("False", "AwaitingApproval")
    await bot.world.delete("finetunejobs", "bot-1")
    await bot.edit({"champion": {"run": "bot-1"}})
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), _list_decisions(status)) == (
        "bot-1", ("True", "Pinned"), {"bot-1": "Promoted"}
    )  # fmt: skip


async def test_promotion_pin_of_other_finetunejob_is_stalled_until_it_is_complete(bot: PromotionHarness) -> None:
    await bot.edit({"champion": {"run": "other"}})
    result = await bot.settle()
    assert result.stalled
    assert (result.stalled[0], result.requeue_after) == ("ChampionNotFound", 60)
    await bot.world.create_finetunejob("other")
    result = await bot.settle()
    assert result.stalled
    assert "other has no result" in result.stalled[1]
    await bot.end_finetunejob("other", "Complete", build_result("other"))
    assert (await bot.settle()).stalled is None
    assert bot.alias_run == "other"
    assert (await bot.begin_run("bot-1"))["spec"]["evaluation"]["baselines"][0]["digest"] == build_digest("other")


async def test_promotion_alias_conflict_waits_for_a_pin(bot: PromotionHarness) -> None:
    bot.alias.objects["s3://bucket/bot/champion.json"] = {"run": "foreign", "digest": "x"}
    await bot.add_run("bot-1")
    result = await bot.settle()
    assert result.requeue_after == pytest.approx(3600, abs=1)
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), status.champion) == ("foreign", ("False", "AliasConflict"), None)
    assert "foreign" in (status.alias_conflict or "")
    assert _list_decisions(status) == {"bot-1": "AliasConflict"}
    await bot.settle()
    assert len(await bot.list_task_jobs()) == 1
    await bot.edit({"champion": {"run": "bot-1"}})
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), status.alias_conflict) == ("bot-1", ("True", "Pinned"), None)


async def test_promotion_alias_conflict_corrected_by_hand_ends_within_an_hour(bot: PromotionHarness) -> None:
    bot.alias.objects["s3://bucket/bot/champion.json"] = {"run": "foreign", "digest": "x"}
    await bot.add_run("bot-1")
    await bot.settle()
    await bot.add_run("bot-2")
    await bot.settle()
    assert _list_decisions(await bot.read_status()) == {"bot-2": "AliasConflict", "bot-1": "AliasConflict"}
    del bot.alias.objects["s3://bucket/bot/champion.json"]
    bot.pass_time(hours=1)
    await bot.settle()
    assert bot.alias_run == "bot-1"
    assert _list_decisions(await bot.read_status()) == {"bot-2": "AliasConflict", "bot-1": "Promoted"}


async def test_promotion_failed_task_is_tried_again_and_loses_nothing(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    bot.alias.failures = [UNREACHABLE]
    await bot.add_run("bot-2", baselines=BETTER)
    await bot.settle()
    status = await bot.read_status()
    assert status.champion
    assert (status.champion.run, bot.alias_run, _get_promoted(status)) == (
        "bot-1", "bot-1", ("False", "PromotionFailed")
    )  # fmt: skip
    assert "StorageUnreachable: no response" in status.conditions[0].message
    await bot.add_run("bot-3", baselines=WORSE)
    bot.pass_time(hours=1)
    await bot.settle()
    status = await bot.read_status()
    assert bot.alias_run == "bot-2"
    assert _list_decisions(status) == {"bot-3": "NotBetter", "bot-2": "Promoted", "bot-1": "Promoted"}
    times = {promotion.promoted_time for promotion in bot.alias.promotions if promotion.champion.run == "bot-2"}
    assert status.champion
    assert times == {status.champion.promoted_time}


async def test_promotion_changed_alias_gets_the_champion(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    await bot.edit({"alias": {"uri": "s3://bucket/new.json"}})
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias.objects["s3://bucket/new.json"]["run"], status.alias_uri) == ("bot-1", "s3://bucket/new.json")
    assert (len(status.champions), _get_promoted(status)) == (1, ("True", "Promoted"))


async def test_promotion_champion_changed_meanwhile_refuses_the_run(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    await bot.begin_run("bot-2")
    await bot.begin_run("bot-3")
    await bot.end_run("bot-3", baselines=BETTER)
    await bot.settle()
    await bot.end_run("bot-2", baselines=BETTER)
    (event,) = (await bot.step()).events
    assert (event.type, event.reason) == ("Normal", "NotPromoted")
    assert "bot-2 did not become the champion: ChampionChanged" in event.message
    await bot.settle()
    status = await bot.read_status()
    assert (bot.alias_run, _list_decisions(status)["bot-2"]) == ("bot-3", "ChampionChanged")


async def test_promotion_of_a_run_whose_finetunejob_was_replaced_is_refused(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.world.delete("finetunejobs", "bot-1")
    await bot.world.create_finetunejob("bot-1")
    await bot.end_finetunejob("bot-1", "Complete", build_result("bot-1"))
    await bot.settle()
    assert _list_decisions(await bot.read_status()) == {"bot-1": "NotMeasured"}


async def test_promotion_starts_no_task_for_what_is_not_stored(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    request, promoter = await bot.read(), bot.build_promoter()
    assert request.schedule.status
    result = await promoter.promote(request, request.schedule.status)
    result = await promoter.promote(request, result.status)
    assert result.status.promoting
    assert await bot.world.list_objects("jobs") == []


async def test_promotion_task_has_the_access_and_the_signing_key_of_the_template(bot: PromotionHarness) -> None:
    storage = {"endpoint": "http://s3:9000", "credentialsSecretRef": {"name": "keys"}}
    signing = {"keySecretRef": {"name": "signing"}}
    await bot.edit({"template": {"spec": {"storage": storage, "output": {"signing": signing}}}})
    await bot.add_run("bot-1")
    while (await bot.step()).requeue_after == 0:
        pass
    (job,) = await bot.list_task_jobs()
    config = read_task_config(job)
    assert config
    assert config.promote
    assert config.promote.signing
    assert (config.storage.endpoint, config.promote.signing.to_json()) == ("http://s3:9000", signing)
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes == {"s3-credentials", "signing"}


async def test_promotion_edited_while_its_task_runs_is_finished_first(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")
    await bot.settle()
    await bot.add_run("bot-2", baselines=BETTER)
    while (await bot.step()).requeue_after == 0:
        pass
    await bot.edit({"champion": {"run": "bot-1"}})
    assert (await bot.step()).requeue_after == 2
    assert len(await bot.list_task_jobs()) == 2
    await bot.settle()
    assert [promotion.champion.run for promotion in bot.alias.promotions] == ["bot-1", "bot-2", "bot-1"]
    assert bot.alias_run == "bot-1"


async def test_promotion_failed_report_is_tried_again_with_the_next_decision(bot: PromotionHarness) -> None:
    bot.alias.report_failures = [UNREACHABLE]
    await bot.add_run("bot-1")
    result = await bot.settle()
    assert [(event.type, event.reason) for event in result.events] == [("Warning", "ReportFailed")]
    assert (await bot.settle()).events == ()
    assert (await bot.read_status()).report_uri is None
    await bot.add_run("bot-2", baselines=WORSE)
    await bot.settle()
    assert (await bot.read_status()).report_uri == "s3://bucket/bot/champion.html"


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
async def test_promotion_operator_killed_at_any_request_promotes_once(
    world: NamespaceHarness, after_effect: bool
) -> None:
    async with open_client(world) as client:
        number, is_killed = 0, True
        while is_killed:
            number += 1
            bot = PromotionHarness(world, client, f"bot{number}")
            await bot.create()
            await bot.add_run(f"bot{number}-1")
            is_killed = await bot.settle_with_fault(number, after_effect)
            status = await bot.read_status()
            assert (bot.alias_run, _get_promoted(status)) == (f"bot{number}-1", ("True", "Promoted"))
            assert len(bot.alias.promotions) == 1
            assert status.report_uri
    assert number > 8


async def test_promotion_two_leaders_promote_once(bot: PromotionHarness) -> None:
    await bot.add_run("bot-1")

    async def work() -> PromotionResult | None:
        try:
            return await bot.step()
        except ApiError as error:
            if error.status != 409:
                raise
            return None

    for _ in range(12):
        await asyncio.gather(work(), work())
        await bot.end_tasks()
    status = await bot.read_status()
    assert (bot.alias_run, _get_promoted(status), status.promoting) == ("bot-1", ("True", "Promoted"), None)
    assert len(bot.alias.promotions) == 1
