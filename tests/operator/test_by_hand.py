"""What people do to a run's objects by hand is left alone, mended or told; nothing foreign is adopted."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.operator.phases import DELETIONS, PHASES, delete, ended, nothing_is_left

if TYPE_CHECKING:
    from tests.operator.world import World

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LABEL = "finetune.dev/job"


def _complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        f"{each.name}: {each.getMessage()}"
        for each in caplog.records
        if each.levelno >= logging.WARNING and each.name.startswith(("finetune_operator", "kopf"))
    ]


async def _nothing_is_kept(operator: Manager) -> bool:
    store = operator.cache
    return not any([*store.finetunejobs, *store.jobs, *store.pods, *store.reported_progress])


@pytest.mark.parametrize("deletion", DELETIONS)
@pytest.mark.parametrize("phase", PHASES)
async def test_a_finetunejob_may_be_deleted_at_any_time(
    world: World, caplog: pytest.LogCaptureFixture, phase: str, deletion: str
) -> None:
    async with world.operator() as operator:
        await PHASES[phase](world)
        body = await world.get("finetunejobs")
        assert "finalizers" not in body["metadata"]
        since = len(world.proxy.writes())
        await DELETIONS[deletion](world, body)
        assert await nothing_is_left(world)
        await world.until(lambda: _nothing_is_kept(operator))
        await operator.resync()
        await asyncio.sleep(0.2)
    assert world.proxy.writes()[since:] == []
    assert _complaints(caplog) == []


@pytest.mark.parametrize("phase", ["running", "finished"])
async def test_so_may_it_while_no_operator_is_there(world: World, caplog: pytest.LogCaptureFixture, phase: str) -> None:
    async with world.operator():
        await PHASES[phase](world)
    await delete(world, await world.get("finetunejobs"))
    assert await nothing_is_left(world)
    since = len(world.proxy.writes())
    async with world.operator() as operator:
        await asyncio.sleep(0.5)
        assert await _nothing_is_kept(operator)
    assert world.proxy.writes()[since:] == []
    assert _complaints(caplog) == []


async def test_a_job_that_lost_its_owner_is_foreign(world: World) -> None:
    """Nobody knows any more whose it is. It is told, and neither taken back nor doubled."""
    async with world.operator():
        await PHASES["running"](world)
        orphan = await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"ownerReferences": None}})
        status = await world.reason("JobPending")
        assert "bot-1" in status["conditions"][0]["message"]
        await world.kubelet(ended(0, "Completed"), "Succeeded")
        status = await world.reason("NameConflict")
    assert status["phase"] == "Failed"
    (job,) = await world.all("jobs")
    assert job["metadata"]["resourceVersion"] == orphan["metadata"]["resourceVersion"]


LABELS: dict[str, Any] = {"taken off": None, "changed": "other"}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
async def test_a_job_without_its_label_is_still_known_and_gets_it_back(world: World, label: str | None) -> None:
    async with world.history() as history, world.operator() as operator:
        await PHASES["running"](world)
        before = len(history)
        await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"labels": {LABEL: label}}})
        await asyncio.sleep(0.5)
        await operator.resync()
        await world.until(lambda: _is_labelled(world))
        await world.kubelet(ended(0, "Completed"), "Succeeded")
        await asyncio.sleep(0.3)  # the Job ends by itself, so it alone can tell
        await world.job_ends("Complete")
        status = await world.reason("Completed")
    assert (status["phase"], len(await world.all("jobs"))) == ("Complete", 1)
    assert {each["phase"] for each in history[before:]} <= {"Running", "Complete"}


async def _is_labelled(world: World) -> bool:
    return bool((await world.get("jobs"))["metadata"]["labels"].get(LABEL) == "bot")


async def test_a_pod_deleted_by_hand_is_an_attempt(world: World) -> None:
    async with world.operator():
        await PHASES["running"](world)
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.reason("JobCreated")
        await world.pod(index=2)
        await world.kubelet({"running": {"startedAt": "2026-11-23T08:10:05Z"}}, name="bot-2")
        status = await world.reason("PodRunning")
    assert status["attempts"] == 2
    assert len(await world.all("jobs")) == 1


async def test_finalizer_of_a_guessed_name_operator_does_not_patch_it_away(world: World) -> None:
    """kopf takes its own finalizer off objects; that this one is refused would hold up the object's events."""
    async with world.operator():
        await world.apply(finalizers=["finetune.dev/never-set"])
        await world.reason("JobCreated")
        await world.change({"suspend": True})
        await world.reason("Suspending")
    assert ("PATCH", world.path("finetunejobs", "bot")) not in world.proxy.writes()
