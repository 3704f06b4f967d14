"""Fixtures of a real cluster: that of `make cluster-up`, or the one that FINETUNE_TEST_KUBECONFIG names."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes import client, config

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

Manifest = dict[str, Any]
Call = Callable[..., Manifest]

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "manifests" / "crd.yaml"
OPERATOR, OPERATOR_NAMESPACE = "finetune-operator", "finetune-system"


def import_local_cluster(module: str) -> ModuleType:
    """A module of dev/local_cluster, which is not installed."""
    if str(ROOT / "dev") not in sys.path:
        sys.path.append(str(ROOT / "dev"))
    return importlib.import_module(f"local_cluster.{module}")


@pytest.fixture(scope="session")
def cluster() -> Iterator["Cluster"]:
    """The local cluster `test`, or the one that FINETUNE_TEST_CLUSTER names, with the images of this checkout.

    A cluster that was running before the tests keeps running.
    """
    import_local_cluster("prepare").prepare_all()
    running = import_local_cluster("cluster").Cluster(os.environ.get("FINETUNE_TEST_CLUSTER", "test"))
    was_up = running.is_up
    running.up()
    yield running
    if not was_up:
        running.down()


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest) -> Path:
    """Return the path of the kubeconfig. Tests of the API need no other fixture."""
    configured_path = os.environ.get("FINETUNE_TEST_KUBECONFIG")
    return Path(configured_path) if configured_path else Path(request.getfixturevalue("cluster").kubeconfig)


@pytest.fixture(scope="session")
def call(kubeconfig: Path) -> Iterator[Call]:
    """`call(method, path, body, **query)` over one connection; raises `ApiException`."""
    settings = client.Configuration()
    config.load_kube_config(str(kubeconfig), client_configuration=settings)  # type: ignore[no-untyped-call]
    settings.proxy = None  # a proxy of the machine has no way to the cluster
    with client.ApiClient(settings) as api:

        def send(method: str, path: str, body: Manifest | None = None, **query: str) -> Manifest:
            content = "application/merge-patch+json" if method == "PATCH" else "application/json"
            headers = {"Accept": "application/json", "Content-Type": content}
            request = api.param_serialize(
                method, path, query_params=[*query.items()], header_params=headers, body=body,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            response = api.call_api(*request)
            text = response.read()
            if response.status >= 400:
                raise client.ApiException(response.status, response.reason, body=text.decode())
            return dict(json.loads(text))

        yield send


@pytest.fixture(scope="session")
def crd(call: Call) -> Manifest:
    """The CRDs as `make generate` writes them, established. Return that of FineTuneJobs."""
    definitions = list(yaml.safe_load_all(CRD.read_text()))
    for definition in definitions:
        _install_crd(call, definition)
    return dict(definitions[0])


def _install_crd(call: Call, definition: Manifest) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    crd_path = f"{path}/{definition['metadata']['name']}"
    try:
        call("POST", path, definition)
    except client.ApiException as error:
        if error.status != 409:
            raise
        call("PATCH", crd_path, {"spec": definition["spec"]})
    deadline = time.monotonic() + 30
    while not _is_established(call("GET", crd_path)):
        assert time.monotonic() < deadline, f"{crd_path} is not established after 30 s"
        time.sleep(0.1)


def _is_established(definition: Manifest) -> bool:
    conditions = definition.get("status", {}).get("conditions") or []
    return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a base model of a few hundred kilobytes in a separate process, so that this one does not import torch."""
    folder = tmp_path_factory.mktemp("base")
    program = (
        "import sys, pathlib; from tests.support.trainer import tiny_model; tiny_model.build(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(folder)], env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def operator(cluster: "Cluster", crd: Manifest) -> str:
    """The operator of this working tree, installed by the chart; the name of its Deployment."""
    assert crd
    cluster.load_images()
    images = import_local_cluster("images")
    values = {
        **_build_image_values("image", images.OPERATOR.reference),
        **_build_image_values("trainer.image", images.TRAINER.reference),
        **_build_image_values("task.image", images.TASK.reference),
        "settings.progressInterval": "1",
        "settings.logLevel": "debug",
    }
    settings = [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]
    chart = str(ROOT / "charts" / "finetune-operator")
    namespace_flags = ["--namespace", OPERATOR_NAMESPACE]
    # The CRD may be there already, from the fixture above.
    cluster.helm(
        "upgrade", "--install", OPERATOR, chart, *namespace_flags, "--create-namespace", "--take-ownership", *settings
    )
    # The image may be new under its old name.
    cluster.kubectl(*namespace_flags, "rollout", "restart", f"deployment/{OPERATOR}")
    cluster.kubectl(*namespace_flags, "rollout", "status", f"deployment/{OPERATOR}", "--timeout=180s")
    return OPERATOR


def _build_image_values(value: str, reference: str) -> dict[str, str]:
    repository, _, tag = reference.partition(":")
    return {f"{value}.repository": repository, f"{value}.tag": tag}
