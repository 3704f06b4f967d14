"""Executes the example notebook of the Python client against the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbclient import NotebookClient
from tests.support.cluster.cluster_harness import SECRET, ClusterHarness, open_cluster_harness

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]
NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "python-client.ipynb"


@pytest.fixture(scope="module")
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    """Yield a namespace with data and a base model."""
    assert operator
    with open_cluster_harness(cluster, tiny_model) as started:
        yield started


def test_notebook_in_repository_has_no_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, 4).cells
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


def test_notebook_executed_trains_and_downloads_adapter(
    flow: ClusterHarness, cluster: Cluster, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "AWS_ACCESS_KEY_ID": cluster.s3.access_key,
        "AWS_SECRET_ACCESS_KEY": cluster.s3.secret_key,
        "NO_PROXY": "*",  # a proxy of the machine has no way to the cluster
        "FINETUNE_EXAMPLE_NAMESPACE": flow.namespace,
        "FINETUNE_EXAMPLE_MODEL": f"s3://{flow.bucket}/base/",
        "FINETUNE_EXAMPLE_DATA": f"s3://{flow.bucket}/train.jsonl",
        "FINETUNE_EXAMPLE_OUTPUT": f"s3://{flow.bucket}/out/{{name}}",
        "FINETUNE_EXAMPLE_STORE": cluster.s3.url,
        "FINETUNE_EXAMPLE_SECRET": SECRET,
        "FINETUNE_EXAMPLE_GPUS": "0",
        "FINETUNE_EXAMPLE_STEPS": "4",
        "FINETUNE_EXAMPLE_FOLDER": str(tmp_path / "adapter"),
        "FINETUNE_EXAMPLE_BASE": str(tiny_model),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "Complete" in printed
    assert "evalLoss: base" in printed
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "notebook-report.html").read_bytes().startswith(b"<!DOCTYPE html>")
