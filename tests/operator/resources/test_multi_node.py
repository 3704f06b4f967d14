"""Runs with several pods: Job, Service, environment, and the pods that report the state of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aiohttp import web
from tests.support.operator.api_server import KUBERNETES_VERSIONS
from tests.support.operator.fault_proxy import build_error_response

from finetune_operator.api import FineTuneJob
from finetune_operator.observed.pod import list_reporting_pods
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders
    from tests.support.operator.namespace_harness import NamespaceHarness

Body = dict[str, Any]


class GroupCase(NamedTuple):
    compute: Body
    job_fields: Body
    environment: dict[str, str]


GROUPS = {
    "one pod with a GPU": GroupCase({}, {}, {}),
    "one pod on the CPU": GroupCase({"gpusPerNode": 0}, {}, {}),
    "one pod with all GPUs of a node": GroupCase({"gpusPerNode": 8}, {}, {"FINETUNE_PROCESSES_PER_NODE": "8"}),
    "two pods on CPUs": GroupCase(
        {"nodes": 2, "gpusPerNode": 0},
        {"completionMode": "Indexed", "completions": 2, "parallelism": 2},
        {"FINETUNE_NODES": "2", "FINETUNE_RENDEZVOUS": "bot-0.bot.team.svc:29400"},
    ),
    "four pods with two GPUs each": GroupCase(
        {"nodes": 4, "gpusPerNode": 2},
        {"completionMode": "Indexed", "completions": 4, "parallelism": 4},
        {"FINETUNE_NODES": "4", "FINETUNE_RENDEZVOUS": "bot-0.bot.team.svc:29400", "FINETUNE_PROCESSES_PER_NODE": "2"},
    ),
}


def _build_job(build: type[Builders], compute: Body, **metadata: Any) -> Body:
    spec = {"compute": compute}
    return build_job(FineTuneJob.model_validate(build.finetunejob(spec=spec, **metadata)), Settings())


@pytest.mark.parametrize("case", GROUPS.values(), ids=GROUPS)
def test_multi_node_compute_sets_job_fields_and_environment(build: type[Builders], case: GroupCase) -> None:
    job = _build_job(build, case.compute)
    spec = job["spec"]
    names = ("completionMode", "completions", "parallelism")
    assert {key: spec[key] for key in names if key in spec} == case.job_fields
    variables = {variable["name"]: variable["value"] for variable in spec["template"]["spec"]["containers"][0]["env"]}
    assert {key: value for key, value in variables.items() if key in _group_variables()} == case.environment
    assert spec["template"]["spec"].get("subdomain") == ("bot" if case.job_fields else None)
    assert (multi_node.build_service(job) is not None) == bool(case.job_fields)
    volumes = [volume["name"] for volume in spec["template"]["spec"]["volumes"]]
    assert ("shared-memory" in volumes) == (case.compute.get("gpusPerNode", 1) > 1)


def _group_variables() -> set[str]:
    return {"FINETUNE_NODES", "FINETUNE_RENDEZVOUS", "FINETUNE_PROCESSES_PER_NODE"}


def test_multi_node_service_selects_pods_of_its_job(build: type[Builders]) -> None:
    job = _build_job(build, {"nodes": 2, "podLabels": {"team": "nlp"}}, labels={"kueue.x-k8s.io/queue-name": "gpus"})
    service = multi_node.build_service(job)
    assert service
    labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    assert service == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "bot",
            "namespace": "team",
            "labels": labels,
            "ownerReferences": job["metadata"]["ownerReferences"],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels,
            "ports": [{"name": "rendezvous", "port": 29400}],
        },
    }


def _build_indexed_pod(build: type[Builders], index: int | None, state: Body) -> Body:
    pod = build.pod(f"bot-{index}-x", state, phase="Running")
    annotations = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
    return {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}


PODS = {
    "no index, running": (None, None, True),
    "index 0, running": (0, None, True),
    "index 1, running": (1, None, False),
    "index 1, lost its peers": (1, 76, False),
    "index 1, stopped by SIGTERM": (1, 143, False),
    "index 1, permanent error": (1, 42, True),
}


@pytest.mark.parametrize(("index", "exit_code", "is_reporting"), PODS.values(), ids=PODS)
def test_reporting_pods_exclude_others_without_permanent_error(
    build: type[Builders], index: int | None, exit_code: int | None, is_reporting: bool
) -> None:
    pod = _build_indexed_pod(build, index, {"running": {}} if exit_code is None else build.terminated(exit_code))
    assert list_reporting_pods([pod]) == ([pod] if is_reporting else [])


def test_multi_node_rendezvous_address_stays_in_namespace(build: type[Builders]) -> None:
    """The address resolves to the same pod with each entry of the pod's DNS search path."""
    job = _build_job(build, {"nodes": 2})
    (address,) = (
        variable["value"]
        for variable in _get_pod_spec(job)["containers"][0]["env"]
        if variable["name"] == "FINETUNE_RENDEZVOUS"
    )
    host, _, port = address.rpartition(":")
    assert port == "29400"
    for domain in ("team.svc.cluster.local", "svc.cluster.local", "cluster.local"):
        service, zone = f"{host}.{domain}".split(".svc", 1)
        if zone == ".cluster.local":
            assert service == f"{_get_pod_spec(job)['subdomain']}-0.bot.team"


def _get_pod_spec(job: Body) -> Body:
    return dict(job["spec"]["template"]["spec"])


@pytest.mark.cluster
async def test_reconciler_multi_node_creates_owned_service(world: NamespaceHarness) -> None:
    world.proxy.fail_next("POST", "/services", 500, after_effect=True)  # The retry finds the created Service.
    async with world.run_operator():
        stored = await world.create_finetunejob(spec={"compute": {"nodes": 2, "gpusPerNode": 0}})
        await world.wait_for_reason("JobCreated")
    (service,) = [
        candidate for candidate in await world.list_objects("services") if candidate["metadata"]["name"] == "bot"
    ]
    assert service["metadata"]["ownerReferences"][0]["uid"] == stored["metadata"]["uid"]
    assert (await world.get("jobs"))["spec"]["completionMode"] == "Indexed"


@pytest.mark.cluster
@pytest.mark.parametrize("kubernetes_version", KUBERNETES_VERSIONS)
async def test_reconciler_multi_node_name_with_digit_creates_valid_service(world: NamespaceHarness) -> None:
    """Older versions of Kubernetes reject names of Services that begin with a digit."""
    async with world.run_operator():
        await world.create_finetunejob("7b", spec={"compute": {"nodes": 2}})
        await world.wait_for_reason("JobCreated", "7b")
    service = await world.get("services", "ftj-7b")
    pod = (await world.get("jobs", "7b"))["spec"]["template"]["spec"]
    variables = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert variables["FINETUNE_RENDEZVOUS"] == f"7b-0.ftj-7b.{world.namespace}.svc:29400"
    assert service["spec"]["selector"]["finetune.dev/job"] == "7b"


@pytest.mark.cluster
async def test_reconciler_service_with_digit_of_earlier_finetunejob_is_no_conflict(world: NamespaceHarness) -> None:
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "name": "7b", "uid": "old"}
    meta = {"name": "ftj-7b", "ownerReferences": [{**owner, "controller": True}]}
    await world.call("POST", world.path("services"), {"metadata": meta, "spec": {"ports": [{"port": 80}]}})
    async with world.run_operator():
        await world.create_finetunejob("7b", spec={"compute": {"nodes": 2}})
        status = await world.wait_for_reason("JobPending", "7b")
    assert "the Service of an earlier FineTuneJob" in status["conditions"][0]["message"]


@pytest.mark.cluster
async def test_reconciler_foreign_service_is_name_conflict(world: NamespaceHarness) -> None:
    foreign = {"metadata": {"name": "bot"}, "spec": {"ports": [{"port": 80}]}}
    await world.call("POST", world.path("services"), foreign)
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2}})
        status = await world.wait_for_reason("NameConflict")
    assert "Service bot exists" in status["conditions"][0]["message"]
    assert not await world.list_objects("jobs")


@pytest.mark.cluster
async def test_reconciler_service_deleted_is_recreated_for_next_attempt(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2}})
        await world.create_pod()
        await world.report_container_state({"running": {"startedAt": "2026-11-23T08:00:05Z"}})
        await world.wait_for_reason("PodRunning")
        await world.delete("services")
        terminated = {"exitCode": 76, "startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:10:00Z"}
        await world.report_container_state({"terminated": terminated}, "Failed")
        service = await world.wait_until(lambda: world.get("services"))
        await world.wait_for_reason("Retrying")
    assert service["metadata"]["ownerReferences"][0]["name"] == "bot"


@pytest.mark.cluster
async def test_reconciler_service_rejected_still_updates_status(world: NamespaceHarness) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        is_service = (request.method, request.path.rpartition("/")[2]) == ("POST", "services")
        return build_error_response(403) if is_service else None

    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2}})
        await world.create_pod()
        world.proxy.interceptor = refuse
        terminated = {"exitCode": 76, "startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:10:00Z"}
        await world.report_container_state({"terminated": terminated}, "Failed")
        await world.wait_for_reason("Retrying")


@pytest.mark.cluster
async def test_reconciler_single_node_creates_no_service(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob()
        await world.wait_for_reason("JobCreated")
    assert not [service for service in await world.list_objects("services") if service["metadata"]["name"] == "bot"]


@pytest.mark.cluster
async def test_reconciler_service_of_earlier_finetunejob_is_waited_for(world: NamespaceHarness) -> None:
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"nodes": 2}})
        await world.wait_for_reason("JobCreated")
        await world.delete("finetunejobs")
        await world.delete("jobs")
        await world.create_finetunejob(spec={"compute": {"nodes": 2}})
        status = await world.wait_for_reason("JobPending")
        await world.wait_until(lambda: _has_message(world, "the Service of an earlier FineTuneJob"))
        assert status["phase"] == "Pending"
        await world.delete("services")  # as the garbage collector does
        await world.wait_for_reason("JobCreated")


async def _has_message(world: NamespaceHarness, words: str) -> bool:
    status = (await world.get("finetunejobs")).get("status", {})
    return any(words in condition["message"] for condition in status.get("conditions", []))
