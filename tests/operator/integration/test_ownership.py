"""Which controller, and which installation of the operator, owns a FineTuneJob."""

from __future__ import annotations

import secrets
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest
from tests.support.operator.builders import build_key
from tests.support.operator.namespace_harness import RequestRejected, build_lease_rules
from tests.support.operator.tenant_namespaces import grant_cluster_rights

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

    from finetune_operator.manager import Manager

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

MULTI_KUEUE = "kueue.x-k8s.io/multikueue"
ANNOTATION = "finetune.dev/installation"
OTHER_LEASE = "other-operator"


def _count(operator: Manager, metric_name: str, namespace: str) -> float:
    samples = (sample for metric in operator.collect() if metric.name == metric_name for sample in metric.samples)
    return sum(sample.value for sample in samples if sample.labels["namespace"] == namespace)


async def _assert_job_created(world: NamespaceHarness, name: str) -> None:
    await world.create_finetunejob(name)
    await world.wait_for_reason("JobCreated", name)


async def test_finetunejob_managed_by_other_controller_is_ignored(world: NamespaceHarness) -> None:
    listed = await world.create_finetunejob("listed", {"managedBy": MULTI_KUEUE})
    async with world.run_operator() as operator:
        watched = await world.create_finetunejob("watched", {"managedBy": MULTI_KUEUE, "suspend": True})
        await world.create_finetunejob("ours", {"managedBy": "finetune.dev/finetune-operator"})
        await world.wait_for_reason("JobCreated", "ours")
        await operator.resync()
        await _assert_job_created(world, "unset")
        for ignored in (listed, watched):
            name = ignored["metadata"]["name"]
            assert await world.get("finetunejobs", name) == ignored
            await world.delete("finetunejobs", name)
        assert _count(operator, "finetune_jobs", world.namespace) == 2
        with pytest.raises(RequestRejected, match="managedBy"):
            await world.patch_spec({"managedBy": MULTI_KUEUE}, "unset")
    assert {job["metadata"]["name"] for job in await world.list_objects("jobs")} == {"ours", "unset"}


def _run_other_installation(world: NamespaceHarness) -> AbstractAsyncContextManager[Manager]:
    """Run a second installation of the operator, which watches the whole cluster and has another Lease."""
    return world.run_operator(watch_namespaces=[], lease_name=OTHER_LEASE, installation_id="platform/finetune")


async def test_two_installations_each_run_has_one_owner_and_other_reports_it(
    world: NamespaceHarness, caplog: pytest.LogCaptureFixture
) -> None:
    await world.grant_role(build_lease_rules(OTHER_LEASE), OTHER_LEASE)
    names = [f"run-{number}" for number in range(6)]
    async with (
        grant_cluster_rights(world),
        world.run_operator(installation_id="team/finetune") as namespaced,
        _run_other_installation(world) as clusterwide,
    ):
        for name in names:
            await world.create_finetunejob(name)
        for name in names:
            await world.wait_for_reason("JobCreated", name)

        async def is_each_run_foreign_to_one() -> bool:
            counts = [_count(each, "finetune_foreign_jobs", world.namespace) for each in (namespaced, clusterwide)]
            return sum(counts) == len(names)

        await world.wait_until(is_each_run_foreign_to_one)
    foreign_events = [event for event in await world.list_objects("events") if event["reason"] == "ForeignJob"]
    assert sorted(event["involvedObject"]["name"] for event in foreign_events) == names
    assert {event["type"] for event in foreign_events} == {"Warning"}
    messages = [record.getMessage() for record in caplog.records]
    assert len([message for message in messages if "also watches namespace" in message]) in (1, 2)  # once by each


async def test_run_of_other_installation_gets_no_writes_until_handed_over(world: NamespaceHarness) -> None:
    async with world.run_operator(installation_id="team/old"):
        await _assert_job_created(world, "bot")
    stored = await world.get("finetunejobs")
    async with world.run_operator(installation_id="team/new") as operator:
        await world.patch_spec({"suspend": True, "backoffLimit": 7})
        await _assert_job_created(world, "next")
        operator.workers.enqueue(build_key("bot", world.namespace))
        await _assert_job_created(world, "last")
        assert (await world.get("finetunejobs"))["status"] == stored["status"]
        assert "deletionTimestamp" not in (await world.get("jobs"))["metadata"]
        await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"annotations": {ANNOTATION: "team/new"}}})
        await world.wait_for_reason("Suspending")
        assert _count(operator, "finetune_foreign_jobs", world.namespace) == 0


async def test_unseen_job_of_other_installation_is_not_replaced(world: NamespaceHarness) -> None:
    """A Job without its label is in no cache, so this installation learns of it when it creates its own."""
    async with world.run_operator(installation_id="team/old"):
        await _assert_job_created(world, "bot")
    await world.call("PATCH", world.path("jobs", "bot"), {"metadata": {"labels": {"finetune.dev/job": None}}})
    await world.patch_spec({"suspendAtStep": 7})
    async with world.run_operator(installation_id="team/new") as operator:

        async def is_foreign() -> bool:
            return _count(operator, "finetune_foreign_jobs", world.namespace) == 1

        await world.wait_until(is_foreign)
    assert "deletionTimestamp" not in (await world.get("jobs"))["metadata"]


@pytest.mark.parametrize("installation_id", ["team/old", ""], ids=["renamed release with its old id", "no id"])
async def test_run_of_same_or_unnamed_installation_is_adopted(world: NamespaceHarness, installation_id: str) -> None:
    async with world.run_operator(installation_id=installation_id):
        await _assert_job_created(world, "bot")
    assert (await world.get("jobs"))["metadata"].get("annotations", {}).get(ANNOTATION, "") == installation_id
    async with world.run_operator(installation_id=installation_id or "team/new"):
        await world.patch_spec({"backoffLimit": 7})

        async def is_patched() -> bool:
            return bool((await world.get("jobs"))["spec"]["backoffLimit"] == 7)

        await world.wait_until(is_patched)


@pytest.mark.parametrize("version", ["v1alpha1", "v1beta1"])
async def test_job_of_earlier_finetunejob_in_other_api_version_is_waited_for(
    world: NamespaceHarness, version: str
) -> None:
    async with world.run_operator():
        await _assert_job_created(world, "bot")
    job = await world.get("jobs")
    owner = job["metadata"]["ownerReferences"][0]
    name = f"bot-{secrets.token_hex(2)}"
    template = {**job["spec"]["template"], "metadata": {}}
    meta = {"name": name, "ownerReferences": [
        {**owner, "apiVersion": f"finetune.dev/{version}", "name": name, "uid": "earlier"}
    ]}  # fmt: skip
    await world.call("POST", world.path("jobs"), {"metadata": meta, "spec": {"template": template}})
    async with world.run_operator():
        await world.create_finetunejob(name)
        status = await world.wait_for_reason("JobPending", name)
    assert "Job of an earlier FineTuneJob" in status["conditions"][0]["message"]
