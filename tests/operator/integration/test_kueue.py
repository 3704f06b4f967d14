"""A queued run on a real API server. The tests act as Kueue's webhook and controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

Body = dict[str, Any]
GROUP = "kueue.x-k8s.io"
LABELS = {f"{GROUP}/queue-name": "gpus", f"{GROUP}/priority-class": "low"}
READ_WORKLOADS = {"apiGroups": [GROUP], "resources": ["workloads"], "verbs": ["list"]}
STARTED, STARTED_AGAIN = "2026-11-23T08:00:05Z", "2026-11-23T09:00:05Z"
QUOTA_PENDING = {
    "type": "QuotaReserved", "status": "False", "reason": "WaitingForQuota",
    "message": "couldn't assign flavors to pod set main: insufficient unused quota for nvidia.com/gpu, 1 more needed",
}  # fmt: skip
RESERVED = {"type": "QuotaReserved", "status": "True", "reason": "QuotaReserved", "message": "in ClusterQueue gpus"}
ADMITTED = {"type": "Admitted", "status": "True", "reason": "Admitted", "message": "The workload is admitted"}
EVICTED = {
    "type": "Evicted", "status": "True", "reason": "Preempted",
    "message": "Preempted to accommodate a workload (UID: 1) due to prioritization in the ClusterQueue",
}  # fmt: skip
FLAVOR = {
    "nodeSelector": {"pool": "spot"},
    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}],
}
ADMISSION = "/apis/admissionregistration.k8s.io/v1"


def _build_workload_crd(version: str) -> Body:
    """Return the part of Kueue's CRD that the operator reads."""
    open_object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": open_object, "status": open_object}}
    names = {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"}
    served = {
        "name": version, "served": True, "storage": True,
        "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema},
    }  # fmt: skip
    # A group of Kubernetes' own domain is protected: a CRD in it names its approval.
    annotations = {"api-approved.kubernetes.io": "unapproved, a copy for tests"}
    metadata = {"name": f"workloads.{GROUP}", "annotations": annotations}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [served]},
    }


def _build_mutating_policy() -> list[tuple[str, Body]]:
    """Return a policy that acts as Kueue's webhook: a Job with a queue is created suspended."""
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    condition = f"has(object.metadata.labels) && '{GROUP}/queue-name' in object.metadata.labels"
    patch = {"expression": "Object{spec: Object.spec{suspend: true}}"}
    policy = {
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "queued", "expression": condition}],
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": patch}],
    }
    return [
        ("mutatingadmissionpolicies", {"metadata": {"name": "kueue"}, "spec": policy}),
        ("mutatingadmissionpolicybindings", {"metadata": {"name": "kueue"}, "spec": {"policyName": "kueue"}}),
    ]


class FakeKueue:
    """Acts as Kueue's controller."""

    def __init__(self, world: NamespaceHarness, version: str) -> None:
        self.world = world
        self.version = version

    async def install(self) -> None:
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await self.world.call("POST", crds, _build_workload_crd(self.version))
        for plural, body in _build_mutating_policy():
            await self.world.call("POST", f"{ADMISSION}/{plural}", body)
        await self.world.wait_until(self._is_ready)

    async def remove(self) -> None:
        crd = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/workloads.{GROUP}"
        await self.world.call("DELETE", crd)
        for plural, body in reversed(_build_mutating_policy()):
            await self.world.call("DELETE", f"{ADMISSION}/{plural}/{body['metadata']['name']}")
        await self.world.wait_until(lambda: self._is_gone(crd))
        await self.world.wait_until(self._is_webhook_gone)  # the API server learns of a removed policy a moment later

    async def _is_gone(self, path: str) -> bool:
        try:
            await self.world.call("GET", path)
        except AssertionError:
            return True
        return False

    async def _is_ready(self) -> bool:
        await self.world.call("GET", self._workloads_path())
        return await self._is_job_suspended_on_create()

    async def _is_webhook_gone(self) -> bool:
        return not await self._is_job_suspended_on_create()

    async def _is_job_suspended_on_create(self) -> bool:
        container = {"name": "c", "image": "x"}
        spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
        probe = {"metadata": {"name": "probe", "labels": LABELS}, "spec": spec}
        created = await self.world.call("POST", f"{self.world.path('jobs')}?dryRun=All", probe)
        return bool(created["spec"].get("suspend"))

    def _workloads_path(self) -> str:
        return f"/apis/{GROUP}/{self.version}/namespaces/{self.world.namespace}/workloads"

    async def report_conditions(self, *conditions: Body) -> None:
        """Create the Job's Workload if it is missing, and set exactly these conditions."""
        job = await self.world.wait_until(lambda: self.world.get("jobs"))
        meta = {"name": "job-bot", "labels": {f"{GROUP}/job-uid": job["metadata"]["uid"]}}
        with suppress(AssertionError):
            body = {"apiVersion": f"{GROUP}/{self.version}", "kind": "Workload", "metadata": meta}
            await self.world.call("POST", self._workloads_path(), body)
        status = {"conditions": [{**condition, "lastTransitionTime": STARTED} for condition in conditions]}
        await self.world.call("PATCH", f"{self._workloads_path()}/job-bot/status", {"status": status})

    async def admit(self) -> Body:
        """Admit the Job as Kueue does: unsuspended and with the flavor's node selector, in one patch."""
        await self.report_conditions(RESERVED, ADMITTED)
        labels = {"kueue.x-k8s.io/podset": "main"}
        template = {"metadata": {"labels": labels}, "spec": FLAVOR}
        return await self._patch_job({"spec": {"suspend": False, "template": template}})

    async def evict(self) -> Body:
        """Evict the Job as Kueue does, in three patches. The test acts as the Job controller, which ends the pods."""
        await self.report_conditions(EVICTED, RESERVED, ADMITTED)
        stopping = {"kueue.x-k8s.io/stopping": "true"}
        await self._patch_job({"metadata": {"annotations": stopping}, "spec": {"suspend": True}})
        await self.world.call("PATCH", self.world.path("jobs", "bot", "status"), {"status": {"startTime": None}})
        template = {
            "metadata": {"labels": {"kueue.x-k8s.io/podset": None}},
            "spec": {"nodeSelector": None, "tolerations": None},
        }
        return await self._patch_job({"metadata": {"annotations": None}, "spec": {"template": template}})

    async def _patch_job(self, change: Body) -> Body:
        return await self.world.call("PATCH", self.world.path("jobs", "bot"), change)


@pytest.fixture(params=["v1beta2", "v1beta1"])
async def kueue(world: NamespaceHarness, request: pytest.FixtureRequest) -> AsyncIterator[FakeKueue]:
    """Return a stand-in for Kueue, of the current and an older release."""
    stand_in = FakeKueue(world, request.param)
    await stand_in.install()
    yield stand_in
    await stand_in.remove()


async def _get_condition_with_words(world: NamespaceHarness, *words: str) -> Body | None:
    status = (await world.get("finetunejobs")).get("status", {})
    running = next(
        (condition for condition in status.get("conditions", []) if condition["type"] == "Running"), {"message": ""}
    )
    return running if all(word in running["message"] for word in words) else None


def _terminated_state(code: int, message: str) -> Body:
    return {"terminated": {"exitCode": code, "message": message, "startedAt": STARTED, "finishedAt": STARTED}}


async def test_kueue_run_queued_preempted_and_completed(world: NamespaceHarness, kueue: FakeKueue) -> None:
    await world.grant_role([READ_WORKLOADS], "kueue")
    async with world.run_operator() as operator:
        await world.create_finetunejob(labels=LABELS)
        await kueue.report_conditions(QUOTA_PENDING)
        condition = await world.wait_until(
            lambda: _get_condition_with_words(world, "WaitingForQuota: ", QUOTA_PENDING["message"])
        )
        assert (condition["status"], condition["reason"]) == ("False", "Queued")
        assert {**LABELS}.items() <= (await world.get("jobs"))["metadata"]["labels"].items()

        admitted = await kueue.admit()
        await world.create_pod()
        await world.report_container_state({"running": {"startedAt": STARTED}})
        await world.wait_for_reason("PodRunning")

        stopped = await kueue.evict()
        await world.report_container_state(
            _terminated_state(143, '{"reason": "Preempted", "message": "saved step 8"}'), "Failed"
        )
        condition = await world.wait_until(lambda: _get_condition_with_words(world, EVICTED["message"]))
        assert condition["reason"] == "Queued"
        await kueue.report_conditions(EVICTED, QUOTA_PENDING)
        await operator.resync()
        await world.wait_until(lambda: _get_condition_with_words(world, EVICTED["message"], QUOTA_PENDING["message"]))
        assert await world.get("jobs") == stopped

        readmitted = await kueue.admit()
        await world.create_pod(index=2)
        await world.report_container_state({"running": {"startedAt": STARTED_AGAIN}}, name="bot-2")
        assert (await world.wait_for_reason("PodRunning"))["attempts"] == 2
        await operator.resync()
        await asyncio.sleep(0.5)
        assert await world.get("jobs") == readmitted
        assert readmitted["spec"] == admitted["spec"]

        await world.report_container_state(
            _terminated_state(0, '{"reason": "Completed", "message": "done"}'), "Succeeded", "bot-2"
        )
        await world.report_job_end("Complete")
        await world.wait_for_reason("Completed")
    assert [write for write in world.proxy.list_writes() if write[1].endswith(("/jobs", "/jobs/bot"))] == [
        ("POST", world.path("jobs"))
    ]


async def test_kueue_workloads_not_readable_run_is_queued(world: NamespaceHarness, kueue: FakeKueue) -> None:
    async with world.run_operator():
        await world.create_finetunejob(labels=LABELS)
        await kueue.report_conditions(QUOTA_PENDING)
        await world.wait_for_reason("Queued")
        await kueue.admit()
        await world.wait_for_reason("JobCreated")


async def test_kueue_not_installed_suspended_job_is_queued(world: NamespaceHarness) -> None:
    await world.grant_role([READ_WORKLOADS], "kueue")
    async with world.run_operator():
        await world.create_finetunejob(labels=LABELS)
        await world.wait_for_reason("JobCreated")
        await world.call("PATCH", world.path("jobs", "bot"), {"spec": {"suspend": True}})
        await world.wait_for_reason("Queued")


async def test_kueue_suspended_run_leaves_and_reenters_queue(world: NamespaceHarness, kueue: FakeKueue) -> None:
    """The Job of a suspended FineTuneJob is deleted, because Kueue would resume it."""
    async with world.run_operator():
        await world.create_finetunejob(labels=LABELS)
        await world.wait_for_reason("Queued")
        first = await world.get("jobs")
        await world.patch_spec({"suspend": True})
        await world.wait_for_reason("Suspending")
        await world.finish_job_deletion()
        await world.wait_for_reason("Suspended")
        await world.patch_spec({"suspend": False})
        await world.wait_for_reason("Queued")
        second = await world.get("jobs")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["spec"]["suspend"] is True
