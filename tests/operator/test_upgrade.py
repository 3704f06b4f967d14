"""`helm upgrade` and `helm rollback` with runs under way: from the first version that trained, to this tree, and back.

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
from tests.operator import api_server as api
from tests.operator.bodies import NOW, Body, ended_state
from tests.operator.proxies import Proxy
from tests.operator.world import Refused, World

from finetune_operator.settings import Settings
from finetune_trainer.contract import CONFIG_ENV, TrainerConfig
from local_cluster import tools

pytestmark = [pytest.mark.upgrade, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
FIRST = "8686636d6ac570f6400f53571addb8e4a86da618"
"""The commit at which the first run went all the way from manifest to adapter; the oldest whose chart works."""
NAME, NAMESPACE = "finetune-operator", "finetune-system"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/finetunejobs.finetune.dev"
DOCUMENTED = r"\nhelm upgrade finetune-operator charts/finetune-operator --namespace finetune-system (.*)\n"
ENDS = {"done": (0, "Completed", "Complete"), "broken": (42, "DataInvalid", "Failed")}


class Release:
    """The chart's release in a cluster, and its operator, which runs here instead of in a pod."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = folder

    def helm(self, *words: str | Path) -> None:
        """Any verb of helm; CRDs and Deployments are stored, nothing runs them."""
        reach = [
            "--kube-apiserver",
            self._world.proxy.target,
            "--kube-token",
            api.TOKEN,
            "--kube-insecure-skip-tls-verify",
        ]
        homes = {f"HELM_{kind}_HOME": str(self._folder / kind) for kind in ("CACHE", "CONFIG", "DATA")}
        command = [tools.program("helm"), *words, "--namespace", NAMESPACE, *reach]
        done = subprocess.run(command, env={**os.environ, **homes}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @asynccontextmanager
    async def operator(self, source: Path) -> AsyncIterator[None]:
        """The operator of a tree, from its start until it works, with what the chart's Deployment gives it."""
        path = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{NAME}"
        (container,) = (await self._world.call("GET", path))["spec"]["template"]["spec"]["containers"]
        environment = {each["name"]: each.get("value", NAMESPACE) for each in container["env"]}
        environment |= {
            "PYTHONPATH": f"{source / 'operator'}:{source / 'trainer'}",
            "KUBECONFIG": str(api.kubeconfig(self._folder, f"http://127.0.0.1:{self._world.proxy.port}")),
            "FINETUNE_OPERATOR_LIVENESS_ENDPOINT": "",
            "PATH": os.environ["PATH"],
        }
        with _process(self._folder / "operator.log", environment) as process:
            yield
            assert process.poll() is None, (self._folder / "operator.log").read_text()


@contextmanager
def _process(log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "finetune_operator"]
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The first version's tree."""
    folder = tmp_path / "old"
    folder.mkdir()
    command = ["git", "-C", ROOT, "archive", FIRST, "charts", "operator", "trainer"]
    archive = subprocess.run(command, capture_output=True, check=False)
    assert archive.returncode == 0, f"the history is missing (git fetch --unshallow): {archive.stderr.decode()}"
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[str]:
    """An API server of its own: charts replace the CRD."""
    with api.serve(tmp_path) as url:
        yield url


@pytest.fixture
async def cluster(own_server: str) -> AsyncIterator[World]:
    """A cluster without our CRD, whose operator has the chart's rights."""
    with Proxy(own_server) as proxy:
        async with api.session() as session:
            world = World(session, proxy, "team", Settings())
            await world.call("DELETE", CRD)
            await world.until(lambda: _is_gone(world))
            for namespace in (NAMESPACE, world.namespace):
                await world.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
            await _bind(world, "clusterrolebindings", {"kind": "ClusterRole", "name": NAME})
            await _bind(world, f"namespaces/{NAMESPACE}/rolebindings", {"kind": "Role", "name": f"{NAME}-lease"})
            yield world


async def _bind(world: World, path: str, role: Body) -> None:
    """Give the process what the chart gives its service account."""
    group = "rbac.authorization.k8s.io"
    subjects = [{"apiGroup": group, "kind": "User", "name": "operator"}]
    binding = {"metadata": {"name": "process"}, "roleRef": {"apiGroup": group, **role}, "subjects": subjects}
    await world.call("POST", f"/apis/{group}/v1/{path}", binding)


async def _is_gone(world: World) -> bool:
    try:
        await world.call("GET", CRD)
    except Refused:
        return True
    return False


@pytest.fixture
def release(cluster: World, tmp_path: Path) -> Release:
    """See `Release`."""
    tools.ensure()
    return Release(cluster, tmp_path)


class Life(NamedTuple):
    """What must not change of a FineTuneJob: its Job, and how it ended."""

    job: str
    ends: dict[str, tuple[str, str, str]]


async def _lives(world: World) -> dict[str, Life]:
    jobs = {each["metadata"]["name"]: each["metadata"]["uid"] for each in await world.all("jobs")}
    lives = {}
    for each in await world.all("finetunejobs"):
        ends = {
            condition["type"]: (condition["status"], condition["reason"], condition["lastTransitionTime"])
            for condition in each["status"]["conditions"]
            if condition["type"] in ("Complete", "Failed")
        }
        lives[each["metadata"]["name"]] = Life(jobs[each["metadata"]["name"]], ends)
    return lives


async def _run(world: World, name: str) -> None:
    """A FineTuneJob with a running trainer."""
    await world.apply(name)
    await world.pod(name)
    await world.kubelet({"running": {"startedAt": NOW}}, name=f"{name}-1")
    await world.reason("PodRunning", name)


async def _end(world: World, name: str, code: int, reason: str, kind: str) -> None:
    word = json.dumps({"reason": reason, "message": "words"})
    await world.kubelet(ended_state(code, word), "Failed" if code else "Succeeded", f"{name}-1")
    await world.job_ends(kind, name=name)
    await world.reason(reason, name)


def _config(job: Body) -> TrainerConfig:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (text,) = (each["value"] for each in container["env"] if each["name"] == CONFIG_ENV)
    return TrainerConfig.model_validate_json(text.replace("$$", "$"))


def _documented_options() -> list[str]:
    (options,) = re.findall(DOCUMENTED, (ROOT / "docs" / "getting-started" / "install.md").read_text())
    return shlex.split(options)


def _created(world: World) -> list[str]:
    return [path for method, path in world.proxy.writes() if method in ("POST", "DELETE")]


async def test_upgrade_and_rollback_change_no_run(cluster: World, release: Release, old: Path) -> None:
    world, chart = cluster, Path("charts") / NAME
    release.helm("install", NAME, old / chart)
    await world.until(lambda: world.call("GET", world.path("finetunejobs")))
    async with release.operator(old):
        for name in (*ENDS, "runs"):
            await _run(world, name)
        await world.apply("waits")
        await world.reason("JobCreated", "waits")
        for name, end in ENDS.items():
            await _end(world, name, *end)
    before = await _lives(world)

    release.helm("upgrade", NAME, ROOT / chart, *_documented_options())
    world.proxy.seen.clear()
    async with release.operator(ROOT):
        await _run(world, "new")
        assert {name: life for name, life in (await _lives(world)).items() if name != "new"} == before
        assert _created(world) == [world.path("jobs")]  # the new one's
        stored = await world.get("finetunejobs", "runs")
        assert _config(await world.get("jobs", "runs")).digest() == TrainerConfig.from_manifest(stored).digest()
        await _end(world, "runs", *ENDS["done"])  # what the old version began ends under this one
    before = await _lives(world)

    release.helm("rollback", NAME, "1")
    world.proxy.seen.clear()
    async with release.operator(old):
        await _run(world, "newest")
        assert {name: life for name, life in (await _lives(world)).items() if name != "newest"} == before
        assert _created(world) == [world.path("jobs")]
        await _end(world, "new", *ENDS["done"])  # and what this version began under the old one
        await _end(world, "newest", *ENDS["broken"])
