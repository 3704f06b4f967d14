"""The self-test of `helm test` finds defects of an installation, with the permissions of its Role and no others."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from aiohttp import web
from kubernetes import client
from tests.support.operator import api_server as api

from finetune_operator import selftest
from finetune_operator.codegen.__main__ import CHART
from finetune_operator.codegen.crd import DEFINITIONS, build_root_schema
from finetune_operator.selftest import ApiServer, Installation
from local_cluster import tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.operator.builders import Body
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

NAME = "finetune-operator"


def render_role_rules() -> list[Body]:
    """Return the rules of the Role of the self-test."""
    command = [tools.find_program("helm"), "template", NAME, CHART, "--show-only", "templates/tests/selftest.yaml"]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (role,) = (manifest for manifest in yaml.safe_load_all(rendered) if manifest["kind"] == "Role")
    rules: list[Body] = role["rules"]
    return rules


async def set_ready_replicas(world: NamespaceHarness, replicas: int) -> None:
    path = f"/apis/apps/v1/namespaces/{world.namespace}/deployments/{NAME}/status"
    await world.call("PATCH", path, {"status": {"replicas": replicas, "readyReplicas": replicas}})


async def set_leader(world: NamespaceHarness, name: str) -> None:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases/{NAME}"
    await world.call("PATCH", path, {"spec": {"holderIdentity": name}})


@pytest.fixture
async def installed(world: NamespaceHarness) -> NamespaceHarness:
    """Return a namespace with a ready Deployment, a leader, and the Role of the self-test."""
    selector = {"app": NAME}
    container = {"name": "operator", "image": "operator:1"}
    template = {"metadata": {"labels": selector}, "spec": {"containers": [container]}}
    deployment = {"metadata": {"name": NAME}, "spec": {"selector": {"matchLabels": selector}, "template": template}}
    await world.call("POST", f"/apis/apps/v1/namespaces/{world.namespace}/deployments", deployment)
    lease = {"metadata": {"name": NAME}, "spec": {"holderIdentity": "pod-1"}}
    await world.call("POST", f"/apis/coordination.k8s.io/v1/namespaces/{world.namespace}/leases", lease)
    await set_ready_replicas(world, 1)
    await world.grant_role(render_role_rules(), "selftest")
    return world


async def run_selftest(world: NamespaceHarness, timeout: float = 0) -> bool:
    """Run the checks in a thread, with requests through the proxy of the operator's user.

    The API server publishes the OpenAPI document of a new CRD after about two seconds.
    """

    def run() -> bool:
        with client.ApiClient(client.Configuration(host=f"http://127.0.0.1:{world.proxy.port}")) as connection:
            installation = Installation(world.namespace, NAME, NAME)
            return selftest.run_checks(ApiServer(connection), installation, timeout)

    return await asyncio.to_thread(run)


async def test_selftest_working_installation_passes(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_selftest(installed, timeout=20), capsys.readouterr().out
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(selftest.CHECKS)
    assert all(line.startswith("ok: ") for line in lines)
    assert await installed.list_objects("finetunejobs") == []


async def test_selftest_uses_every_permission_of_its_role(installed: NamespaceHarness) -> None:
    assert await run_selftest(installed, timeout=20)
    granted = {
        (verb, group, resource)
        for rule in render_role_rules()
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    used = {permission for permission in installed.proxy.permissions if permission[1] != "v3"}  # OpenAPI
    assert used == granted


async def test_selftest_installation_that_gets_ready_passes(installed: NamespaceHarness) -> None:
    await set_ready_replicas(installed, 0)
    run = asyncio.create_task(run_selftest(installed, timeout=20))
    await asyncio.sleep(1)
    assert not run.done()
    await set_ready_replicas(installed, 1)
    assert await run


async def test_selftest_no_ready_replica_and_no_leader_fails(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    await set_ready_replicas(installed, 0)
    await set_leader(installed, "")
    assert not await run_selftest(installed)
    output = capsys.readouterr().out
    assert f"FAILED: check_deployment: no replica is ready: see kubectl -n {installed.namespace}" in output
    assert "FAILED: check_leader: no replica holds the Lease finetune-operator" in output


OLDER_FIELDS = {"FineTuneJob": "cancel", "FineTuneSchedule": "suspend", "FineTuneSweep": "cancel"}


@pytest.mark.parametrize(("kind", "field"), OLDER_FIELDS.items())
async def test_selftest_older_crd_fails(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str], kind: str, field: str
) -> None:
    schemas = {definition.kind: build_root_schema(definition) for definition in DEFINITIONS}
    del schemas[kind]["properties"]["spec"]["properties"][field]
    document = {"components": {"schemas": {f"dev.finetune.v1alpha1.{name}": old for name, old in schemas.items()}}}

    async def answer_with_old_schema(request: web.Request) -> web.StreamResponse | None:
        return web.json_response(document) if request.path.startswith("/openapi/v3/") else None

    installed.proxy.interceptor = answer_with_old_schema
    assert not await run_selftest(installed)
    expected = f"the CRD of {kind} in the cluster is older than the operator: it lacks spec.{field} (fields: 1). Set"
    assert expected in capsys.readouterr().out


async def test_selftest_crd_without_schedules_fails(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"components": {"schemas": {"dev.finetune.v1alpha1.FineTuneJob": build_root_schema()}}}

    async def answer_with_one_kind(request: web.Request) -> web.StreamResponse | None:
        return web.json_response(document) if request.path.startswith("/openapi/v3/") else None

    installed.proxy.interceptor = answer_with_one_kind
    assert not await run_selftest(installed)
    assert "the CRD of FineTuneSchedule in the cluster is older" in capsys.readouterr().out


ODD_ANSWERS = {
    "a proxy's page": ("<html>log in</html>", "the answer is not from the API server"),
    "an empty object": ("{}", "no replica holds the Lease"),
}


@pytest.mark.parametrize(("content", "message"), ODD_ANSWERS.values(), ids=ODD_ANSWERS)
async def test_selftest_odd_answer_is_reported(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    """For example, the OpenAPI document of a CRD that is being installed has no schema yet."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text=content)

    installed.proxy.interceptor = answer
    assert not await run_selftest(installed)
    output = capsys.readouterr().out
    assert message in output
    assert output.count("FAILED: ") == output.count("\n") - output.count("ok: ")


async def test_selftest_api_server_that_accepts_everything_fails(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    async def accept(request: web.Request) -> web.StreamResponse | None:
        return web.json_response({}, status=201) if request.method == "POST" else None

    installed.proxy.interceptor = accept
    assert not await run_selftest(installed)
    assert "FAILED: check_invalid_finetunejob: the API server accepts" in capsys.readouterr().out


async def test_selftest_webhook_that_refuses_is_reported(
    installed: NamespaceHarness, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse | None:
        message = {"message": 'admission webhook "policy.example" denied the request'}
        return web.json_response(message, status=403) if request.method == "POST" else None

    installed.proxy.interceptor = refuse
    assert not await run_selftest(installed)
    output = capsys.readouterr().out
    assert "FAILED: check_valid_finetunejob: the API server answered 403" in output
    assert "policy.example" in output


async def test_selftest_process_reads_kubeconfig(installed: NamespaceHarness, tmp_path: Path) -> None:
    kubeconfig = api.write_kubeconfig(tmp_path, f"http://127.0.0.1:{installed.proxy.port}")
    arguments = ["--namespace", installed.namespace, "--deployment", NAME, "--lease", NAME, "--timeout", "20"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "finetune_operator.selftest", *arguments),
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert output.decode().count("ok: ") == len(selftest.CHECKS)
