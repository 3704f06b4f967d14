"""What is applied stays as it was applied: `kubectl diff`, and with it Argo CD and Flux, find nothing to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.cluster.admission_cases import ACCEPTED
from tests.cluster.manifests import changed, good
from tests.operator import api_server as api
from tests.operator.bodies import ended_state

from local_cluster import tools

if TYPE_CHECKING:
    from tests.operator.bodies import Body
    from tests.operator.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"
MODES = {"client-side": [], "server-side": ["--server-side", "--field-manager=gitops"]}
Kubectl = Callable[..., Awaitable[tuple[int, str]]]


def _manifests() -> list[Body]:
    """The samples, and everything else that the API server takes."""
    samples = [yaml.safe_load(file.read_text()) for file in sorted(SAMPLES.glob("*.yaml"))]
    cases = [changed(good(f"case-{index}"), changes) for index, changes in enumerate(ACCEPTED.values())]
    # Server-side apply keeps null where other writes leave the field out, and the schema then refuses it.
    return [*samples, *(each for each in cases if "null" not in json.dumps(each))]


@pytest.fixture
def kubectl(world: World, api_server: str, tmp_path: Path) -> Kubectl:
    """kubectl as administrator in the test's namespace, with all manifests as its file; exit status and output."""
    tools.ensure_built()
    (tmp_path / "jobs.yaml").write_text(yaml.safe_dump_all(_manifests()))
    reach = ["--server", api_server, "--token", api.TOKEN, "--insecure-skip-tls-verify", "-n", world.namespace]

    async def run(verb: str, *words: str) -> tuple[int, str]:
        command = [tools.find_program("kubectl"), *reach, verb, "-f", tmp_path / "jobs.yaml", *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=-2)
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    return run


async def _work(world: World) -> None:
    """Let every FineTuneJob have its Job; one has failed then, one is complete, one runs."""
    failed, complete, runs = (each["metadata"]["name"] for each in _manifests()[:3])

    async def seen() -> bool:
        return all(each["status"]["conditions"] for each in await world.all("finetunejobs"))

    await world.until(seen, 60)
    for name in (failed, complete, runs):
        await world.pod(name)
        await world.kubelet({"running": {"startedAt": "2026-11-23T08:00:05Z"}}, name=f"{name}-1")
        await world.reason("PodRunning", name)
    word = json.dumps({"reason": "Completed", "message": "done"})
    await world.kubelet(ended_state(0, word), "Succeeded", f"{complete}-1")
    await world.job_ends("Complete", name=complete)
    await world.reason("Completed", complete)
    await world.kubelet(ended_state(42, word.replace("Completed", "DataInvalid")), "Failed", f"{failed}-1")
    await world.job_ends("Failed", "PodFailurePolicy", name=failed)
    await world.reason("DataInvalid", failed)


@pytest.mark.parametrize("mode", MODES)
async def test_what_was_applied_has_not_drifted(world: World, kubectl: Kubectl, mode: str) -> None:
    status, said = await kubectl("apply", *MODES[mode])
    assert status == 0, said
    async with world.operator():
        await _work(world)
        assert await kubectl("diff", *MODES[mode]) == (0, "")
        before = await world.all("finetunejobs")
        status, said = await kubectl("apply", *MODES[mode])
    assert status == 0, said
    assert await world.all("finetunejobs") == before
    assert {each["metadata"]["generation"] for each in before} == {1}
