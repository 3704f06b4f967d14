"""Several pods: what their Job, their Service and their environment say, and which of them speaks for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from tests.operator.proxies import failure

from finetune_operator.api import FineTuneJob
from finetune_operator.observed import objects
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.operator.bodies import Build
    from tests.operator.world import World

Body = dict[str, Any]

# compute, what the Job's spec has of it, and the trainer's variables
GROUPS: dict[str, tuple[Body, Body, dict[str, str]]] = {
    "one pod with a GPU": ({}, {}, {}),
    "one pod on the CPU": ({"gpusPerNode": 0}, {}, {}),
    "one pod with all GPUs of a node": ({"gpusPerNode": 8}, {}, {"FINETUNE_PROCESSES_PER_NODE": "8"}),
    "two pods on CPUs": (
        {"nodes": 2, "gpusPerNode": 0},
        {"completionMode": "Indexed", "completions": 2, "parallelism": 2},
        {"FINETUNE_NODES": "2", "FINETUNE_RENDEZVOUS": "bot-0.bot.team.svc:29400"},
    ),
    "four pods with two GPUs each": (
        {"nodes": 4, "gpusPerNode": 2},
        {"completionMode": "Indexed", "completions": 4, "parallelism": 4},
        {"FINETUNE_NODES": "4", "FINETUNE_RENDEZVOUS": "bot-0.bot.team.svc:29400", "FINETUNE_PROCESSES_PER_NODE": "2"},
    ),
}


def _job(build: type[Build], compute: Body, **metadata: Any) -> Body:
    spec = {"compute": compute}
    return build_job(FineTuneJob.model_validate(build.stored(spec=spec, **metadata)), Settings())


@pytest.mark.parametrize(("compute", "fields", "environment"), GROUPS.values(), ids=GROUPS)
def test_a_job_of_many_pods(build: type[Build], compute: Body, fields: Body, environment: dict[str, str]) -> None:
    job = _job(build, compute)
    spec = job["spec"]
    names = ("completionMode", "completions", "parallelism")
    assert {key: spec[key] for key in names if key in spec} == fields
    variables = {each["name"]: each["value"] for each in spec["template"]["spec"]["containers"][0]["env"]}
    assert {key: value for key, value in variables.items() if key in _about_groups()} == environment
    assert spec["template"]["spec"].get("subdomain") == ("bot" if fields else None)
    assert (multi_node.build_service(job) is not None) == bool(fields)
    volumes = [each["name"] for each in spec["template"]["spec"]["volumes"]]
    assert ("shared-memory" in volumes) == (compute.get("gpusPerNode", 1) > 1)


def _about_groups() -> set[str]:
    return {"FINETUNE_NODES", "FINETUNE_RENDEZVOUS", "FINETUNE_PROCESSES_PER_NODE"}


def test_the_service_is_how_its_own_pods_meet(build: type[Build]) -> None:
    job = _job(build, {"nodes": 2, "podLabels": {"team": "nlp"}}, labels={"kueue.x-k8s.io/queue-name": "gpus"})
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


def _numbered(build: type[Build], index: int | None, state: Body) -> Body:
    pod = build.pod(f"bot-{index}-x", state, phase="Running")
    annotations = {} if index is None else {"batch.kubernetes.io/job-completion-index": str(index)}
    return {**pod, "metadata": {**pod["metadata"], "annotations": annotations}}


# index, exit status or None while it runs, and whether the run's state is read off this pod
PODS = {
    "a pod without a number": (None, None, True),
    "the first": (0, None, True),
    "another": (1, None, False),
    "another that lost its peers": (1, 76, False),
    "another that was told to stop": (1, 143, False),
    "another that failed for good": (1, 42, True),
}


@pytest.mark.parametrize(("index", "status", "tells"), PODS.values(), ids=PODS)
def test_who_speaks_for_all(build: type[Build], index: int | None, status: int | None, tells: bool) -> None:
    pod = _numbered(build, index, {"running": {}} if status is None else build.ended(status))
    assert objects.reporting_pods([pod]) == ([pod] if tells else [])


def test_the_pods_meet_in_their_own_namespace(build: type[Build]) -> None:
    """Every name that a pod's resolver may make of the address, by Kubernetes' search path, says so."""
    job = _job(build, {"nodes": 2})
    (address,) = (each["value"] for each in _pod(job)["containers"][0]["env"] if each["name"] == "FINETUNE_RENDEZVOUS")
    host, _, port = address.rpartition(":")
    assert port == "29400"
    for domain in ("team.svc.cluster.local", "svc.cluster.local", "cluster.local"):
        service, zone = f"{host}.{domain}".split(".svc", 1)
        if zone == ".cluster.local":
            assert service == f"{_pod(job)['subdomain']}-0.bot.team"


def _pod(job: Body) -> Body:
    return dict(job["spec"]["template"]["spec"])


@pytest.mark.cluster
async def test_the_pods_find_each_other_by_a_service_that_is_theirs(world: World) -> None:
    world.proxy.fail("POST", "/services", 500, late=True)  # the next try finds it there
    async with world.operator():
        stored = await world.apply(spec={"compute": {"nodes": 2, "gpusPerNode": 0}})
        await world.reason("JobCreated")
    (service,) = [each for each in await world.all("services") if each["metadata"]["name"] == "bot"]
    assert service["metadata"]["ownerReferences"][0]["uid"] == stored["metadata"]["uid"]
    assert (await world.get("jobs"))["spec"]["completionMode"] == "Indexed"


@pytest.mark.cluster
async def test_a_service_of_that_name_is_never_touched(world: World) -> None:
    foreign = {"metadata": {"name": "bot"}, "spec": {"ports": [{"port": 80}]}}
    await world.call("POST", world.path("services"), foreign)
    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2}})
        status = await world.reason("NameConflict")
    assert "A Service named bot exists" in status["conditions"][0]["message"]
    assert not await world.all("jobs")


@pytest.mark.cluster
async def test_a_service_that_was_deleted_is_there_again_for_the_next_attempt(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2}})
        await world.pod()
        await world.kubelet({"running": {"startedAt": "2026-11-23T08:00:05Z"}})
        await world.reason("PodRunning")
        await world.delete("services")
        end = {"exitCode": 76, "startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:10:00Z"}
        await world.kubelet({"terminated": end}, "Failed")
        service = await world.until(lambda: world.get("services"))
        await world.reason("Retrying")
    assert service["metadata"]["ownerReferences"][0]["name"] == "bot"


@pytest.mark.cluster
async def test_services_that_are_refused_hold_up_no_word(world: World) -> None:
    async def refuse(request: web.Request) -> web.Response | None:
        is_service = (request.method, request.path.rpartition("/")[2]) == ("POST", "services")
        return failure(403) if is_service else None

    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2}})
        await world.pod()
        world.proxy.trouble = refuse
        end = {"exitCode": 76, "startedAt": "2026-11-23T08:00:05Z", "finishedAt": "2026-11-23T08:10:00Z"}
        await world.kubelet({"terminated": end}, "Failed")
        await world.reason("Retrying")


@pytest.mark.cluster
async def test_one_pod_needs_no_service(world: World) -> None:
    async with world.operator():
        await world.apply()
        await world.reason("JobCreated")
    assert not [each for each in await world.all("services") if each["metadata"]["name"] == "bot"]


@pytest.mark.cluster
async def test_the_service_of_a_predecessor_is_waited_for(world: World) -> None:
    async with world.operator():
        await world.apply(spec={"compute": {"nodes": 2}})
        await world.reason("JobCreated")
        await world.delete("finetunejobs")
        await world.delete("jobs")
        await world.apply(spec={"compute": {"nodes": 2}})
        status = await world.reason("JobPending")
        await world.until(lambda: _says(world, "The Service of an earlier FineTuneJob"))
        assert status["phase"] == "Pending"
        await world.delete("services")  # by the garbage collector
        await world.reason("JobCreated")


async def _says(world: World, words: str) -> bool:
    status = (await world.get("finetunejobs")).get("status", {})
    return any(words in each["message"] for each in status.get("conditions", []))
