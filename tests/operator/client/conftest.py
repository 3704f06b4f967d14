"""Fixtures of the tests of the client: a namespace of a real API server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.operator.api_server import KUBERNETES_VERSIONS
from tests.support.operator.client_namespace import ClientNamespace
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve


@pytest.fixture
def namespace(api_servers: Callable[[str], str], tmp_path: Path) -> ClientNamespace:
    """Return an empty namespace."""
    return ClientNamespace(api_servers(KUBERNETES_VERSIONS[0]), tmp_path)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from serve(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with its credentials in the environment as a user has them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    return s3_server
