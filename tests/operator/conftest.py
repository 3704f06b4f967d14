"""Fixtures: builders of objects, a real API server behind a proxy with faults, and the operator in this process."""

from __future__ import annotations

import functools
import json
import secrets
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.support.operator import api_server as api
from tests.support.operator.builders import Body, Builders
from tests.support.operator.fault_proxy import FakeTrainer, FaultProxy
from tests.support.operator.namespace_harness import LEASE_NAME, OPERATOR_RULES, NamespaceHarness, build_lease_rules
from tests.support.operator.schedule_harness import ScheduleWorld, open_schedule_world
from tests.support.operator.watch_interceptors import WatchGate

from finetune_operator.settings import Settings
from local_cluster import tools


@pytest.fixture
def build() -> type[Builders]:
    """Return the builders of objects."""
    return Builders


RESTRICTED_LABELS = {"pod-security.kubernetes.io/enforce": "restricted"}
ComputeKstatus = Callable[..., list[dict[str, str]]]


@pytest.fixture(scope="session")
def kstatus() -> ComputeKstatus:
    """Return a function that computes the status of objects with kstatus, the library of Flux and `helm --wait`."""
    tools.ensure_built()

    def compute_kstatus(*objects: Body) -> list[dict[str, str]]:
        lines = "\n".join(map(json.dumps, objects))
        result = subprocess.run(
            [tools.find_program("kstatus")], input=lines, capture_output=True, text=True, check=True
        )
        return [json.loads(line) for line in result.stdout.splitlines()]

    return compute_kstatus


@pytest.fixture(scope="session")
def api_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function that returns the URL of a kube-apiserver of this version, which the first call starts."""
    with ExitStack() as stack:

        @functools.cache
        def get_url(version: str) -> str:
            return stack.enter_context(api.run_emulated_api_server(tmp_path_factory.mktemp("api-server"), version))

        yield get_url


@pytest.fixture
def kubernetes_version() -> str:
    """Return the version of the API server. Some tests have it as a parameter."""
    return api.KUBERNETES_VERSIONS[0]


@pytest.fixture
def api_server(api_servers: Callable[[str], str], kubernetes_version: str) -> str:
    """Return the URL of a kube-apiserver with the CRD."""
    return api_servers(kubernetes_version)


@pytest.fixture
def trainer() -> Iterator[FakeTrainer]:
    """Return a server that reports progress as a trainer does."""
    with FakeTrainer() as trainer:
        yield trainer


@pytest.fixture
async def world(api_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NamespaceHarness]:
    """Return an empty namespace, which the operator accesses through a proxy."""
    async with api.open_session() as session:
        with FaultProxy(api_server) as proxy:
            monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path, f"http://127.0.0.1:{proxy.port}")))
            namespace = f"test-{secrets.token_hex(4)}"
            settings = Settings(
                watch_namespaces=[namespace], resync_interval=30, progress_interval=0.2, request_timeout=5, workers=2,
                lease_namespace=namespace, lease_name=LEASE_NAME, lease_seconds=5, health_port=0, metrics_port=0,
                checkpoint_retention_seconds=0,
            )  # fmt: skip
            world = NamespaceHarness(session, proxy, namespace, settings)
            await world.call(
                "POST", "/api/v1/namespaces", {"metadata": {"name": namespace, "labels": RESTRICTED_LABELS}}
            )
            await world.grant_role([*OPERATOR_RULES, *build_lease_rules(LEASE_NAME)])
            yield world


@pytest.fixture
async def schedules(world: NamespaceHarness) -> AsyncIterator[ScheduleWorld]:
    """Return the namespace with a clock of its own for FineTuneSchedules."""
    async with open_schedule_world(world) as schedules:
        yield schedules


@pytest.fixture
def watches(world: NamespaceHarness) -> WatchGate:
    """Return a gate between the operator and its watches."""
    gate = WatchGate(world.proxy.target)
    world.proxy.interceptor = gate.intercept
    return gate
