"""Builders of bodies, a real API server behind a proxy that fails on demand, and the operator in this process."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.operator import api_server as api
from tests.operator.bodies import Body, Build
from tests.operator.proxies import Proxy, Trainer
from tests.operator.watches import Watches
from tests.operator.world import LEASE, RULES, World, lease_rules

from finetune_operator.settings import Settings
from local_cluster import tools


@pytest.fixture
def build() -> type[Build]:
    """See `Build`."""
    return Build


RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
Kstatus = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="session")
def kstatus() -> Kstatus:
    """What Flux, Argo CD's peers and `helm --wait` take objects for, by the library that they use."""
    tools.ensure_built()

    def compute(*objects: Body) -> list[dict[str, str]]:
        lines = "\n".join(map(json.dumps, objects))
        done = subprocess.run([tools.find_program("kstatus")], input=lines, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return compute


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a kube-apiserver with the CRD."""
    with api.serve(tmp_path_factory.mktemp("api-server")) as url:
        yield url


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    """A trainer that says how far it is."""
    with Trainer() as trainer:
        yield trainer


@pytest.fixture
async def world(api_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """An empty namespace, reached by the operator through a proxy."""
    async with api.session() as session:
        with Proxy(api_server) as proxy:
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path, f"http://127.0.0.1:{proxy.port}")))
            namespace = f"test-{secrets.token_hex(4)}"
            settings = Settings(
                watch_namespaces=[namespace], resync_interval=30, progress_interval=0.2, request_timeout=5, workers=2,
                lease_namespace=namespace, lease_name=LEASE, lease_seconds=5, health_port=0, metrics_port=0,
            )  # fmt: skip
            world = World(session, proxy, namespace, settings)
            await world.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": RESTRICTED}})
            await world.allow([*RULES, *lease_rules(LEASE)])
            yield world


@pytest.fixture
def watches(world: World) -> Watches:
    """Between the operator and its watches."""
    between = Watches(world.proxy.target)
    world.proxy.trouble = between.trouble
    return between
