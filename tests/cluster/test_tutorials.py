"""The commands of the tutorials in the local cluster, on a tiny base model.

The pages read the addresses of the store and of the model from variables, so their commands run unchanged. They run in
a folder with copies of the samples, in which the buckets have other names, and in which the gates, which a tiny model
cannot pass, are removed and trainings are short.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from tests.cluster.conftest import import_local_cluster
from tests.support.cluster.cluster_harness import ClusterHarness, open_cluster_harness
from tests.support.docs.code_blocks import DOCS, ROOT, read_blocks

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PREPARATION = DOCS / "getting-started" / "applications.md"
PAGES = {"quickstart": DOCS / "getting-started" / "first-run.md", "chatbot": DOCS / "tutorials" / "chatbot.md"}
"""Pages whose commands are run, by the name of their sample."""


@pytest.fixture(scope="module")
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    assert operator
    with open_cluster_harness(cluster, tiny_model) as harness:
        # The page on preparations creates the Secret.
        harness.kubectl("delete", "secret", "s3-credentials")
        yield harness


@pytest.fixture(scope="module")
def workspace(flow: ClusterHarness, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the samples for the tiny model, whose data is uploaded."""
    folder = tmp_path_factory.mktemp("workspace")
    samples = folder / "manifests" / "samples"
    samples.mkdir(parents=True)
    for name in PAGES:
        (samples / f"{name}.yaml").write_text(_shorten_sample(name, flow.bucket))
        for file in (ROOT / "manifests" / "samples" / "data").glob(f"{name}-*.jsonl"):
            key = f"datasets/{name}/{file.name.removeprefix(f'{name}-')}"
            flow.s3.upload_file(str(file), flow.bucket, key)
    return folder


def _shorten_sample(name: str, bucket: str) -> str:
    """Return the sample for a tiny model, with URIs in a bucket of the test."""
    text = (ROOT / "manifests" / "samples" / f"{name}.yaml").read_text()
    job = yaml.safe_load(re.sub(r"s3://(datasets|adapters)/", rf"s3://{bucket}/\1/", text))
    spec = job["spec"]
    del spec["training"]["epochs"]
    spec["training"]["maxSteps"] = 2
    spec["evaluation"].pop("gate", None)
    spec["evaluation"]["maxNewTokens"] = 8
    spec["compute"]["resources"]["requests"] = {"cpu": "50m", "memory": "256Mi"}
    return yaml.safe_dump(job)


@pytest.fixture(scope="module")
def environment(flow: ClusterHarness, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user: programs, a kubeconfig whose namespace is that of the test, store and base model."""
    kubeconfig = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    for context in kubeconfig["contexts"]:
        context["context"]["namespace"] = flow.namespace
    path = tmp_path_factory.mktemp("user") / "kubeconfig"
    path.write_text(yaml.safe_dump(kubeconfig))
    kubectl = import_local_cluster("tools").find_program("kubectl")
    return {
        **os.environ,
        **cluster.build_environment(),
        "PATH": ":".join([str(Path(sys.executable).parent), str(kubectl.parent), os.environ["PATH"]]),
        "KUBECONFIG": str(path),
        "STORE": cluster.s3.url,
        "MODEL": f"s3://{flow.bucket}/base/",
        "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
        "AWS_REGION": cluster.s3.region,
    }


def test_tutorial_commands_succeed(workspace: Path, environment: dict[str, str]) -> None:
    run_commands(PREPARATION, workspace, environment)
    for page in PAGES.values():
        run_commands(page, workspace, environment)
    report = (workspace / "report-chatbot.html").read_text()
    assert re.search(r"Fine-tuning report of <bdi>\S*chatbot</bdi>", report)
    assert (workspace / "adapter" / "adapter_model.safetensors").exists()


def run_commands(page: Path, workspace: Path, environment: dict[str, str]) -> None:
    """Run the commands of a page in one shell, as a reader does. An error of one ends the test."""
    code = "\n".join(block.code for block in read_blocks(page, "sh") if block.runner == "cluster")
    result = subprocess.run(
        ["bash", "-exuo", "pipefail", "-c", code], cwd=workspace, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{page.name}:\n{result.stdout}\n{result.stderr}"
