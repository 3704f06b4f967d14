"""Fixtures of commands that need an API server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.cli.cluster import ClusterNamespace
from tests.support.cli.command import Answer, CommandLine
from tests.support.operator import api_server as api


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Return the URL and the certificate of an API server with the CRDs."""
    folder = tmp_path_factory.mktemp("api-server")
    with api.run_api_server(folder) as url:
        yield url, folder / "certs" / "apiserver.crt"


@pytest.fixture
def namespace(server: tuple[str, Path], tmp_path: Path) -> ClusterNamespace:
    """Return an empty namespace."""
    return ClusterNamespace.open(*server, tmp_path)


class ClusterCommandLine(CommandLine):
    """Calls commands with a kubeconfig. The official client reads `$KUBECONFIG` once in a process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], kubeconfig: Path) -> None:
        super().__init__(capsys)
        self._kubeconfig = kubeconfig

    def __call__(self, *arguments: str | Path) -> Answer:
        return super().__call__(*arguments, "--kubeconfig", self._kubeconfig)


@pytest.fixture
def admin(finetune: CommandLine, namespace: ClusterNamespace, capsys: pytest.CaptureFixture[str]) -> ClusterCommandLine:
    """Return a function that runs a command as administrator."""
    assert finetune
    return ClusterCommandLine(capsys, namespace.admin_kubeconfig)


@pytest.fixture
def tenant(
    finetune: CommandLine, namespace: ClusterNamespace, capsys: pytest.CaptureFixture[str]
) -> ClusterCommandLine:
    """Return a function that runs a command as a tenant without rights."""
    assert finetune
    return ClusterCommandLine(capsys, namespace.tenant_kubeconfig)
