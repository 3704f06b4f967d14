"""Fixtures of the command line's tests: a namespace of a real API server, and a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli.command import CommandLine
from tests.support.operator.api_server import ADMIN_TOKEN, KUBERNETES_VERSIONS, run_emulated_api_server
from tests.support.operator.client_namespace import ClientNamespace, write_client_kubeconfig
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve


@pytest.fixture
def finetune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CommandLine:
    """Return a function that runs a command in this process. There is no kubeconfig unless a fixture writes one."""
    monkeypatch.setattr("sys.argv", ["finetune"])
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("FINETUNE_S3_ENDPOINT", raising=False)
    monkeypatch.chdir(tmp_path)
    return CommandLine(capsys)


@pytest.fixture
def manifest_file(tmp_path: Path, finetune: CommandLine) -> Path:
    """Return the file of a valid manifest."""
    path = tmp_path / "job.yaml"
    path.write_text(finetune("init", "--name", "bot", "--data", "s3://data/a.jsonl").stdout)
    return path


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the URL of a kube-apiserver with the CRDs."""
    with run_emulated_api_server(tmp_path_factory.mktemp("api-server"), KUBERNETES_VERSIONS[0]) as url:
        yield url


@pytest.fixture
def namespace(
    api_server: str, tmp_path: Path, finetune: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> ClientNamespace:
    """Return an empty namespace, which is that of the current context."""
    # The package reads $KUBECONFIG once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    namespace = ClientNamespace(api_server, tmp_path)
    write_client_kubeconfig(tmp_path / "kubeconfig", api_server, namespace.name, ADMIN_TOKEN)
    return namespace


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from serve(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment as a user has them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server
