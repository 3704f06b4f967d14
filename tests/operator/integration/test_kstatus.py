"""The status that GitOps tools compute for a FineTuneJob in each stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from finetune_operator.api import API_VERSION
from finetune_operator.api.schedule import SCHEDULE_PLURAL
from finetune_operator.api.sweep import SWEEP_PLURAL
from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from tests.operator.conftest import ComputeKstatus
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

SAMPLES = Path(__file__).resolve().parents[3] / "manifests" / "samples"
NOW = "2026-11-23T08:00:05Z"
RUNNING = {"running": {"startedAt": NOW}}
COMPLETED_MESSAGE = '{"reason": "Completed", "message": "done"}'
DATA_INVALID_MESSAGE = '{"reason": "DataInvalid", "message": "row 7"}'
STORAGE_UNREACHABLE_MESSAGE = '{"reason": "StorageUnreachable", "message": "no route"}'


def _terminated_state(code: int, message: str) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "startedAt": NOW, "finishedAt": NOW}}


class KstatusProbe:
    """Polls the status of one FineTuneJob."""

    def __init__(self, world: NamespaceHarness, kstatus: ComputeKstatus) -> None:
        self._world = world
        self._kstatus = kstatus

    async def get_health(self) -> str:
        (result,) = self._kstatus(await self._world.get("finetunejobs"))
        return result["status"]

    async def wait_for_reason_then_health(self, reason: str) -> str:
        await self._world.wait_for_reason(reason)
        return await self.get_health()


@pytest.fixture
def stages(world: NamespaceHarness, kstatus: ComputeKstatus) -> KstatusProbe:
    """Return a probe of one FineTuneJob."""
    return KstatusProbe(world, kstatus)


async def test_kstatus_through_lifecycle_matches_each_stage(world: NamespaceHarness, stages: KstatusProbe) -> None:
    await world.create_finetunejob()
    assert await stages.get_health() == "InProgress"  # not reconciled yet
    async with world.run_operator():
        assert await stages.wait_for_reason_then_health("JobCreated") == "Current"
        await world.create_pod()
        await world.report_container_state({"waiting": {"reason": "ContainerCreating"}}, "Pending")
        assert await stages.wait_for_reason_then_health("PodPending") == "Current"
        await world.report_container_state(RUNNING)
        assert await stages.wait_for_reason_then_health("PodRunning") == "Current"
        await world.report_container_state(_terminated_state(75, STORAGE_UNREACHABLE_MESSAGE), "Failed")
        assert await stages.wait_for_reason_then_health("Retrying") == "Current"
        await world.create_pod(index=2)
        await world.report_container_state(_terminated_state(0, COMPLETED_MESSAGE), "Succeeded", "bot-2")
        await world.report_job_end("Complete")
        assert await stages.wait_for_reason_then_health("Completed") == "Current"
    await world.call("PATCH", world.path("finetunejobs", "bot"), {"metadata": {"finalizers": ["test/keep"]}})
    await world.delete("finetunejobs")
    assert await stages.get_health() == "Terminating"


async def test_kstatus_job_rejected_is_in_progress(world: NamespaceHarness, stages: KstatusProbe) -> None:
    for _ in range(2):
        world.proxy.fail_next("POST", "/jobs", 403)
    async with world.run_operator():
        await world.create_finetunejob()
        assert await stages.wait_for_reason_then_health("JobRefused") == "InProgress"


async def test_kstatus_queued_run_is_current(world: NamespaceHarness, stages: KstatusProbe) -> None:
    async with world.run_operator():
        await world.create_finetunejob(labels={"kueue.x-k8s.io/queue-name": "gpus"})
        await world.wait_until(lambda: world.get("jobs"))
        await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"suspend": True}})
        assert await stages.wait_for_reason_then_health("Queued") == "Current"


async def test_kstatus_failed_run_is_failed(world: NamespaceHarness, stages: KstatusProbe) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.create_pod()
        await world.report_container_state(_terminated_state(42, DATA_INVALID_MESSAGE), "Failed")
        await world.report_job_end("Failed", "PodFailurePolicy")
        assert await stages.wait_for_reason_then_health("DataInvalid") == "Failed"


async def test_kstatus_run_outside_limits_is_failed(world: NamespaceHarness, stages: KstatusProbe) -> None:
    world.settings = world.settings.model_copy(update={"bounds": Bounds(max_gpus=4)})
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2, "gpusPerNode": 4}})
        assert await stages.wait_for_reason_then_health("NotAllowed") == "Failed"


async def test_kstatus_spec_changed_is_in_progress_until_observed(
    world: NamespaceHarness, stages: KstatusProbe
) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        assert await stages.wait_for_reason_then_health("JobCreated") == "Current"
    await world.patch_spec({"suspend": True})
    assert await stages.get_health() == "InProgress"
    async with world.run_operator() as operator:
        await world.wait_for_reason("Suspending")
        await world.finish_job_deletion()
        await operator.resync()  # the watch of Jobs may begin after that
        assert await stages.wait_for_reason_then_health("Suspended") == "Current"


@pytest.mark.parametrize(("plural", "sample"), [(SCHEDULE_PLURAL, "schedule"), (SWEEP_PLURAL, "sweep")])
async def test_kstatus_new_owner_is_in_progress_until_observed(
    world: NamespaceHarness, kstatus: ComputeKstatus, plural: str, sample: str
) -> None:
    path = f"/apis/{API_VERSION}/namespaces/{world.namespace}/{plural}"
    created = await world.call("POST", path, yaml.safe_load((SAMPLES / f"{sample}.yaml").read_text()))
    status_path = f"{path}/{created['metadata']['name']}/status"
    observed = await world.call("PATCH", status_path, {"status": {"observedGeneration": 1}})
    edited = await world.call("PATCH", status_path.removesuffix("/status"), {"spec": {"suspend": True}})
    assert [result["status"] for result in kstatus(created, observed, edited)] == [
        "InProgress",
        "Current",
        "InProgress",
    ]
