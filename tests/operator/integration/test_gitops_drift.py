"""The operator changes no applied field: `kubectl diff`, and thus Argo CD and Flux, find no drift."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.support.cluster.admission_cases import ACCEPTED
from tests.support.cluster.manifests import apply_changes, build_valid_manifest
from tests.support.operator import api_server as api
from tests.support.operator.builders import build_terminated_state

from local_cluster import tools

if TYPE_CHECKING:
    from tests.support.operator.builders import Body
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SAMPLES = Path(__file__).resolve().parents[3] / "manifests" / "samples"
MODES = {"client-side": [], "server-side": ["--server-side", "--field-manager=gitops"]}
Kubectl = Callable[..., Awaitable[tuple[int, str]]]


def _load_manifests() -> list[Body]:
    """Return the samples and all other manifests that the API server accepts."""
    samples = [yaml.safe_load(file.read_text()) for file in sorted(SAMPLES.glob("*.yaml"))]
    cases = [
        apply_changes(build_valid_manifest(f"case-{index}"), changes) for index, changes in enumerate(ACCEPTED.values())
    ]
    # Server-side apply keeps null where other writes leave the field out, and the schema then refuses it.
    return [*samples, *(case for case in cases if "null" not in json.dumps(case))]


@pytest.fixture
def kubectl(world: NamespaceHarness, api_server: str, tmp_path: Path) -> Kubectl:
    """Run kubectl as administrator in the test's namespace with all manifests. Return exit code and output."""
    tools.ensure_built()
    (tmp_path / "jobs.yaml").write_text(yaml.safe_dump_all(_load_manifests()))
    reach = ["--server", api_server, "--token", api.ADMIN_TOKEN, "--insecure-skip-tls-verify", "-n", world.namespace]

    async def run(verb: str, *words: str) -> tuple[int, str]:
        command = [tools.find_program("kubectl"), *reach, verb, "-f", tmp_path / "jobs.yaml", *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=-2)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    return run


async def _finish_runs(world: NamespaceHarness) -> None:
    """Wait for the Job of every FineTuneJob, then let one fail, one complete and one run."""
    failed, complete, runs = (manifest["metadata"]["name"] for manifest in _load_manifests()[:3])

    async def have_conditions() -> bool:
        return all(job["status"]["conditions"] for job in await world.list_objects("finetunejobs"))

    await world.wait_until(have_conditions, 60)
    for name in (failed, complete, runs):
        await world.create_pod(name)
        await world.report_container_state({"running": {"startedAt": "2026-11-23T08:00:05Z"}}, name=f"{name}-1")
        await world.wait_for_reason("PodRunning", name)
    message = json.dumps({"reason": "Completed", "message": "done"})
    await world.report_container_state(build_terminated_state(0, message), "Succeeded", f"{complete}-1")
    await world.report_job_end("Complete", name=complete)
    await world.wait_for_reason("Completed", complete)
    await world.report_container_state(
        build_terminated_state(42, message.replace("Completed", "DataInvalid")), "Failed", f"{failed}-1"
    )
    await world.report_job_end("Failed", "PodFailurePolicy", name=failed)
    await world.wait_for_reason("DataInvalid", failed)


async def _list_applied(world: NamespaceHarness) -> list[Body]:
    """Return the FineTuneJobs without those of schedules and sweeps."""
    return [body for body in await world.list_objects("finetunejobs") if "ownerReferences" not in body["metadata"]]


@pytest.mark.parametrize("mode", MODES)
async def test_kubectl_diff_after_reconcile_finds_no_drift(
    world: NamespaceHarness, kubectl: Kubectl, mode: str
) -> None:
    status, output = await kubectl("apply", *MODES[mode])
    assert status == 0, output
    async with world.run_operator():
        await _finish_runs(world)
        assert await kubectl("diff", *MODES[mode]) == (0, "")
        before = await _list_applied(world)
        status, output = await kubectl("apply", *MODES[mode])
    assert status == 0, output
    assert await _list_applied(world) == before
    assert {job["metadata"]["generation"] for job in before} == {1}
