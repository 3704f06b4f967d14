"""`helm upgrade` and `helm rollback` with runs under way: from earlier versions of the chart to this tree, and back.

helm, the API server, the CRDs and both operators are real; each operator is a process with the environment that its own
chart gives it. Needs the repository's history: `make test-upgrade`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.support.operator import api_server as api
from tests.support.operator.builders import NOW, Body, build_terminated_state
from tests.support.operator.fault_proxy import FaultProxy
from tests.support.operator.namespace_harness import NamespaceHarness
from tests.support.operator.schedule_samples import build_schedule_manifest

from finetune_operator.api.spec import GROUP
from finetune_operator.codegen.crd import DEFINITIONS
from finetune_operator.settings import Settings
from finetune_trainer.contract import CONFIG_ENV, TrainerConfig
from local_cluster import tools

pytestmark = [pytest.mark.upgrade, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
EARLIER_COMMITS = {
    # The commit at which the first run went all the way from manifest to adapter; the oldest whose chart works.
    "the first version that trained": "8686636d6ac570f6400f53571addb8e4a86da618",
    # The last commit whose chart has images as strings only, and no values for labels, names and service account.
    "images as strings": "062ccaafa7cfa4b0e48b3beb674d94767bd9d1ad",
}
EARLIER_VALUES = {
    "image": "registry.example/team/finetune-operator:1.0",
    "imagePullPolicy": "Always",
    "trainer": {"image": "registry.example/team/finetune-trainer:1.0", "imagePullPolicy": "Never"},
    "settings": {"workers": 3},
    "priorityClassName": "system-cluster-critical",
}
NAME, NAMESPACE = "finetune-operator", "finetune-system"
PROFILES_FILE = "FINETUNE_OPERATOR_PROFILES_FILE"
CRDS = [
    f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition.plural}.{GROUP}" for definition in DEFINITIONS
]
DOCUMENTED_UPGRADE = r"\nhelm upgrade finetune-operator charts/finetune-operator --namespace finetune-system (.*)\n"
ENDS = {"done": (0, "Completed", "Complete"), "broken": (42, "DataInvalid", "Failed")}


class Release:
    """A release of the chart in a cluster, with its operator as a local process."""

    def __init__(self, world: NamespaceHarness, folder: Path) -> None:
        self._world = world
        self._folder = folder

    def helm(self, *words: str | Path) -> None:
        """Run helm. CRDs and Deployments are stored, but no controller runs them."""
        connection_flags = [
            "--kube-apiserver",
            self._world.proxy.target,
            "--kube-token",
            api.ADMIN_TOKEN,
            "--kube-insecure-skip-tls-verify",
        ]
        environment = {f"HELM_{kind}_HOME": str(self._folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        command = [tools.find_program("helm"), *words, "--namespace", NAMESPACE, *connection_flags]
        result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    def write_values(self, values: Body) -> tuple[str, Path]:
        """Write a values file. Return the options of helm that name it."""
        path = self._folder / "values.yaml"
        path.write_text(json.dumps(values))
        return "--values", path

    async def read_pod_template(self) -> Body:
        """Return the spec of the operator pods."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"
        spec: Body = (await self._world.call("GET", path))["spec"]["template"]["spec"]
        return spec

    @asynccontextmanager
    async def operator(self, source: Path) -> AsyncIterator[None]:
        """Run the operator of a source tree with the environment of the chart's Deployment, and wait until it leads."""
        (container,) = (await self.read_pod_template())["containers"]
        environment: dict[str, str] = {}
        for variable in container["env"]:
            value = NAMESPACE if "valueFrom" in variable else variable.get("value", "")
            environment[variable["name"]] = _expand_variables(value, environment)
        environment |= {
            "PYTHONPATH": f"{source / 'operator'}:{source / 'trainer'}",
            "KUBECONFIG": str(api.write_kubeconfig(self._folder, f"http://127.0.0.1:{self._world.proxy.port}")),
            "FINETUNE_OPERATOR_LIVENESS_ENDPOINT": "",
            "PATH": os.environ["PATH"],
        }
        if PROFILES_FILE in environment:
            environment[PROFILES_FILE] = str(await self._write_profiles())
        with _run_process(self._folder / "operator.log", environment) as process:
            yield
            assert process.poll() is None, (self._folder / "operator.log").read_text()

    async def _write_profiles(self) -> Path:
        """Write the ConfigMap that the Deployment mounts into a file."""
        config_map = await self._world.call("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{NAME}-profiles")
        file = self._folder / "profiles.json"
        file.write_text(config_map["data"][file.name])
        return file


def _expand_variables(value: str, defined: dict[str, str]) -> str:
    """Replace `$(NAME)` by an earlier variable, as the kubelet does."""
    return re.sub(r"\$\((\w+)\)", lambda match: defined.get(match[1], match[0]), value)


@contextmanager
def _run_process(log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "finetune_operator"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(params=EARLIER_COMMITS.values(), ids=EARLIER_COMMITS)
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return the source tree of an earlier version."""
    folder = tmp_path / "old"
    folder.mkdir()
    command = ["git", "-C", ROOT, "archive", request.param, "charts", "operator", "trainer"]
    archive = subprocess.run(command, capture_output=True, check=False)
    assert archive.returncode == 0, f"the history is missing (git fetch --unshallow): {archive.stderr.decode()}"
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[str]:
    """Return the URL of a separate API server, because the charts replace the CRDs."""
    with api.run_api_server(tmp_path) as url:
        yield url


@pytest.fixture
async def cluster(own_server: str) -> AsyncIterator[NamespaceHarness]:
    """Return a cluster without the CRDs, in which the operator has the permissions of the chart."""
    with FaultProxy(own_server) as proxy:
        async with api.open_session() as session:
            world = NamespaceHarness(session, proxy, "team", Settings())
            for crd in CRDS:
                await world.call("DELETE", crd)
            await world.wait_until(lambda: _are_gone(world))
            for namespace in (NAMESPACE, world.namespace):
                await world.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            await _bind_role(world, "clusterrolebindings", {"kind": "ClusterRole", "name": NAME})
            await _bind_role(world, f"namespaces/{NAMESPACE}/rolebindings", {"kind": "Role", "name": f"{NAME}-lease"})
            yield world


async def _bind_role(world: NamespaceHarness, path: str, role: Body) -> None:
    """Grant the process the permissions of the chart's service account."""
    group = "rbac.authorization.k8s.io"
    subjects = [{"apiGroup": group, "kind": "User", "name": "operator"}]
    binding = {"metadata": {"name": "process"}, "roleRef": {"apiGroup": group, **role}, "subjects": subjects}
    await world.call("POST", f"/apis/{group}/v1/{path}", binding)


async def _are_gone(world: NamespaceHarness) -> bool:
    stored = await world.call("GET", CRDS[0].rpartition("/")[0])
    return GROUP not in {crd["spec"]["group"] for crd in stored["items"]}


@pytest.fixture
def release(cluster: NamespaceHarness, tmp_path: Path) -> Release:
    """Return a release of the chart."""
    tools.ensure_built()
    return Release(cluster, tmp_path)


class RunIdentity(NamedTuple):
    """The fields of a FineTuneJob that an upgrade must not change: its Job and its end."""

    job_uid: str
    terminal_conditions: dict[str, tuple[str, str, str]]


async def _get_run_identities(world: NamespaceHarness) -> dict[str, RunIdentity]:
    jobs = {job["metadata"]["name"]: job["metadata"]["uid"] for job in await world.list_objects("jobs")}
    identities = {}
    for finetunejob in await world.list_objects("finetunejobs"):
        terminal_conditions = {
            condition["type"]: (condition["status"], condition["reason"], condition["lastTransitionTime"])
            for condition in finetunejob["status"]["conditions"]
            if condition["type"] in ("Complete", "Failed")
        }
        identities[finetunejob["metadata"]["name"]] = RunIdentity(
            jobs[finetunejob["metadata"]["name"]], terminal_conditions
        )
    return identities


async def _start_run(world: NamespaceHarness, name: str) -> None:
    """Start a FineTuneJob with a running trainer."""
    await world.create_finetunejob(name)
    await world.create_pod(name)
    await world.report_container_state({"running": {"startedAt": NOW}}, name=f"{name}-1")
    await world.wait_for_reason("PodRunning", name)


async def _finish_run(world: NamespaceHarness, name: str, code: int, reason: str, condition_type: str) -> None:
    message = json.dumps({"reason": reason, "message": "words"})
    await world.report_container_state(
        build_terminated_state(code, message), "Failed" if code else "Succeeded", f"{name}-1"
    )
    await world.report_job_end(condition_type, name=name)
    await world.wait_for_reason(reason, name)


def _read_trainer_config(job: Body) -> TrainerConfig:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (text,) = (variable["value"] for variable in container["env"] if variable["name"] == CONFIG_ENV)
    return TrainerConfig.model_validate_json(text.replace("$$", "$"))


def _documented_options() -> list[str]:
    (options,) = re.findall(DOCUMENTED_UPGRADE, (ROOT / "docs" / "getting-started" / "install.md").read_text())
    return shlex.split(options)


def _assert_earlier_values_apply(pod: Body) -> None:
    (container,) = pod["containers"]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert (container["image"], container["imagePullPolicy"]) == (EARLIER_VALUES["image"], "Always")
    assert environment["FINETUNE_OPERATOR_TRAINER_IMAGE"] == "registry.example/team/finetune-trainer:1.0"
    assert environment["FINETUNE_OPERATOR_TRAINER_IMAGE_PULL_POLICY"] == "Never"
    assert environment["FINETUNE_OPERATOR_WORKERS"] == "3"
    assert pod["priorityClassName"] == "system-cluster-critical"


def _list_created_and_deleted(world: NamespaceHarness) -> list[str]:
    return [path for method, path in world.proxy.list_writes() if method in ("POST", "DELETE")]


async def test_helm_upgrade_and_rollback_keep_runs(cluster: NamespaceHarness, release: Release, old: Path) -> None:
    world, chart = cluster, Path("charts") / NAME
    release.helm("install", NAME, old / chart, *release.write_values(EARLIER_VALUES))
    await world.wait_until(lambda: world.call("GET", world.path("finetunejobs")))
    async with release.operator(old):
        for name in (*ENDS, "runs"):
            await _start_run(world, name)
        await world.create_finetunejob("waits")
        await world.wait_for_reason("JobCreated", "waits")
        for name, ending in ENDS.items():
            await _finish_run(world, name, *ending)
    before = await _get_run_identities(world)

    release.helm("upgrade", NAME, ROOT / chart, *_documented_options())
    _assert_earlier_values_apply(await release.read_pod_template())
    world.proxy.requests.clear()
    async with release.operator(ROOT):
        await _start_run(world, "new")
        assert {
            name: identity for name, identity in (await _get_run_identities(world)).items() if name != "new"
        } == before
        assert _list_created_and_deleted(world) == [world.path("jobs")]  # by the new operator
        stored = await world.get("finetunejobs", "runs")
        assert (
            _read_trainer_config(await world.get("jobs", "runs")).digest()
            == TrainerConfig.from_manifest(stored).digest()
        )
        await _finish_run(world, "runs", *ENDS["done"])  # what the old version began ends under this one
        schedule = build_schedule_manifest("bot", world.namespace, {"schedule": "0 3 * * 1"})
        await world.call("POST", world.path("finetuneschedules"), schedule)
    before = await _get_run_identities(world)

    release.helm("rollback", NAME, "1")
    world.proxy.requests.clear()
    async with release.operator(old):
        await _start_run(world, "newest")
        assert {
            name: identity for name, identity in (await _get_run_identities(world)).items() if name != "newest"
        } == before
        assert _list_created_and_deleted(world) == [world.path("jobs")]
        await _finish_run(world, "new", *ENDS["done"])  # and what this version began under the old one
        await _finish_run(world, "newest", *ENDS["broken"])

    release.helm("upgrade", NAME, ROOT / chart, *_documented_options())  # adopts the CRDs that the rollback has left
    assert (await world.get("finetuneschedules"))["spec"]["schedule"] == "0 3 * * 1"
