"""What GitOps tools take a FineTuneJob for at each stage, as it stands in the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from tests.operator.conftest import Kstatus
    from tests.operator.world import World

pytestmark = pytest.mark.cluster

NOW = "2026-11-23T08:00:05Z"
RUNNING = {"running": {"startedAt": NOW}}
DONE = '{"reason": "Completed", "message": "done"}'
BROKEN = '{"reason": "DataInvalid", "message": "row 7"}'
LOST = '{"reason": "StorageUnreachable", "message": "no route"}'


def _ended(code: int, message: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "startedAt": NOW, "finishedAt": NOW}}


class Stages:
    """One FineTuneJob, asked for again and again."""

    def __init__(self, world: World, kstatus: Kstatus) -> None:
        self._world = world
        self._kstatus = kstatus

    async def now(self) -> str:
        (found,) = self._kstatus(await self._world.get("finetunejobs"))
        return found["status"]

    async def at(self, reason: str) -> str:
        await self._world.reason(reason)
        return await self.now()


@pytest.fixture
def stages(world: World, kstatus: Kstatus) -> Stages:
    """See `Stages`."""
    return Stages(world, kstatus)


async def test_from_its_creation_to_its_deletion(world: World, stages: Stages) -> None:
    await world.apply()
    assert await stages.now() == "InProgress"  # no operator has looked at it
    async with world.operator():
        assert await stages.at("JobCreated") == "Current"
        await world.pod()
        await world.kubelet({"waiting": {"reason": "ContainerCreating"}}, "Pending")
        assert await stages.at("PodPending") == "Current"
        await world.kubelet(RUNNING)
        assert await stages.at("PodRunning") == "Current"
        await world.kubelet(_ended(75, LOST), "Failed")
        assert await stages.at("Retrying") == "Current"
        await world.pod(index=2)
        await world.kubelet(_ended(0, DONE), "Succeeded", "bot-2")
        await world.job_ends("Complete")
        assert await stages.at("Completed") == "Current"
    await world.call("PATCH", world.path("finetunejobs", "bot"), {"metadata": {"finalizers": ["test/keep"]}})
    await world.delete("finetunejobs")
    assert await stages.now() == "Terminating"


async def test_a_refused_job_is_in_progress(world: World, stages: Stages) -> None:
    for _ in range(2):
        world.proxy.fail("POST", "/jobs", 403)
    async with world.operator():
        await world.apply()
        assert await stages.at("JobRefused") == "InProgress"


async def test_a_queued_run_keeps_nobody_waiting(world: World, stages: Stages) -> None:
    async with world.operator():
        await world.apply(labels={"kueue.x-k8s.io/queue-name": "gpus"})
        await world.until(lambda: world.get("jobs"))
        await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"suspend": True}})
        assert await stages.at("Queued") == "Current"


async def test_a_failed_run_is_failed(world: World, stages: Stages) -> None:
    async with world.operator():
        await world.apply()
        await world.pod()
        await world.kubelet(_ended(42, BROKEN), "Failed")
        await world.job_ends("Failed", "PodFailurePolicy")
        assert await stages.at("DataInvalid") == "Failed"


async def test_one_that_asks_for_too_much_is_failed(world: World, stages: Stages) -> None:
    world.settings = world.settings.model_copy(update={"bounds": Bounds(max_gpus=4)})
    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2, "gpusPerNode": 4}})
        assert await stages.at("NotAllowed") == "Failed"


async def test_a_change_is_in_progress_until_it_is_seen(world: World, stages: Stages) -> None:
    async with world.operator():
        await world.apply()
        assert await stages.at("JobCreated") == "Current"
    await world.change({"suspend": True})
    assert await stages.now() == "InProgress"
    async with world.operator() as operator:
        await world.reason("Suspending")
        await world.collect()
        await operator.resync()  # the watch of Jobs may begin after that
        assert await stages.at("Suspended") == "Current"
