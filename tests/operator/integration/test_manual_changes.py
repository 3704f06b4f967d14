"""Manual changes of a run's objects are kept, repaired or reported. No foreign object is adopted."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import get_cache
from tests.support.operator.run_phases import (
    DELETIONS,
    PHASES,
    build_outcome_state,
    delete_in_background,
    is_everything_deleted,
)

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

LABEL = "finetune.dev/job"


def _list_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        f"{record.name}: {record.getMessage()}"
        for record in caplog.records
        if record.levelno >= logging.WARNING and record.name.startswith(("finetune_operator", "kopf"))
    ]


async def _is_cache_empty(operator: Manager) -> bool:
    cache = get_cache(operator)
    return not any([*cache.finetunejobs, *cache.jobs, *cache.pods, *cache.reported_progress])


@pytest.mark.parametrize("deletion", DELETIONS)
@pytest.mark.parametrize("phase", PHASES)
async def test_finetunejob_deleted_in_any_phase_leaves_nothing(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture, phase: str, deletion: str
) -> None:
    async with world.run_operator() as operator:
        await PHASES[phase](world)
        body = await world.get("finetunejobs")
        assert "finalizers" not in body["metadata"]
        since = len(world.proxy.list_writes())
        await DELETIONS[deletion](world, body)
        assert await is_everything_deleted(world)
        await world.wait_until(lambda: _is_cache_empty(operator))
        await operator.resync()
        await asyncio.sleep(0.2)
    assert world.proxy.list_writes()[since:] == []
    assert _list_warnings(caplog) == []


@pytest.mark.parametrize("phase", ["running", "finished"])
async def test_finetunejob_deleted_while_operator_down_leaves_nothing(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture, phase: str
) -> None:
    async with world.run_operator():
        await PHASES[phase](world)
    await delete_in_background(world, await world.get("finetunejobs"))
    assert await is_everything_deleted(world)
    since = len(world.proxy.list_writes())
    async with world.run_operator() as operator:
        await asyncio.sleep(0.5)
        assert await _is_cache_empty(operator)
    assert world.proxy.list_writes()[since:] == []
    assert _list_warnings(caplog) == []


async def test_reconciler_job_without_owner_reference_is_name_conflict(world: NamespaceHarness) -> None:
    """The owner of the Job is unknown. The conflict is reported, and the Job neither adopted nor duplicated."""
    async with world.run_operator():
        await PHASES["running"](world)
        orphan = await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"ownerReferences": None}})
        status = await world.wait_for_reason("JobPending")
        assert "bot-1" in status["conditions"][0]["message"]
        await world.report_container_state(build_outcome_state(0, "Completed"), "Succeeded")
        status = await world.wait_for_reason("NameConflict")
    assert status["phase"] == "Failed"
    (job,) = await world.list_objects("jobs")
    assert job["metadata"]["resourceVersion"] == orphan["metadata"]["resourceVersion"]


LABELS: dict[str, Any] = {"taken off": None, "changed": "other"}


@pytest.mark.parametrize("label", LABELS.values(), ids=LABELS)
async def test_reconciler_job_label_removed_restores_label(world: NamespaceHarness, label: str | None) -> None:
    async with world.record_status_history() as history, world.run_operator() as operator:
        await PHASES["running"](world)
        before = len(history)
        await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"labels": {LABEL: label}}})
        await asyncio.sleep(0.5)
        await operator.resync()
        await world.wait_until(lambda: _is_labelled(world))
        await world.report_container_state(build_outcome_state(0, "Completed"), "Succeeded")
        await asyncio.sleep(0.3)  # the pod event is processed first, so only the Job reports the end
        await world.report_job_end("Complete")
        status = await world.wait_for_reason("Completed")
    assert (status["phase"], len(await world.list_objects("jobs"))) == ("Complete", 1)
    assert {entry["phase"] for entry in history[before:]} <= {"Running", "Complete"}


async def _is_labelled(world: NamespaceHarness) -> bool:
    return bool((await world.get("jobs"))["metadata"]["labels"].get(LABEL) == "bot")


async def test_reconciler_pod_deleted_by_user_counts_as_attempt(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await PHASES["running"](world)
        await world.call("DELETE", world.path("pods", "bot-1"), {"gracePeriodSeconds": 0})
        await world.wait_for_reason("JobCreated")
        await world.create_pod(index=2)
        await world.report_container_state({"running": {"startedAt": "2026-11-23T08:10:05Z"}}, name="bot-2")
        status = await world.wait_for_reason("PodRunning")
    assert status["attempts"] == 2
    assert len(await world.list_objects("jobs")) == 1


async def test_operator_foreign_finalizer_is_not_removed(world: NamespaceHarness) -> None:
    """kopf removes its own finalizer from objects. A refused removal would block the events of the object."""
    async with world.run_operator():
        await world.create_finetunejob(finalizers=["finetune.dev/never-set"])
        await world.wait_for_reason("JobCreated")
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
    assert ("PATCH", world.path("finetunejobs", "bot")) not in world.proxy.list_writes()
