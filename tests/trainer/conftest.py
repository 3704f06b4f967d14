"""Fixtures of the trainer tests: a real S3 server, a proxy that fails on demand, and a fork server for trainers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import FaultyProxy
from tests.support.trainer.s3_server import KEY_ID, SECRET, S3Server, serve
from tests.support.trainer.tracking_fixtures import mlflow
from tests.support.trainer.training_fixtures import model_dir, run, unsloth_forks

from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV
from finetune_trainer.storage import S3

__all__ = ["mlflow", "model_dir", "run", "unsloth_forks"]

if TYPE_CHECKING:
    from tests.support.trainer.fork_server import ForkServer

_MARKERS_WITH_SERVER = ("s3", "training", "cluster", "serving", "gpu")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the code under test and the S3 server."""
    with FaultyProxy() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        yield server
        server.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse tests that need the S3 server without the marker: `make check` would build the server first."""
    for item in items:
        needs_server = isinstance(item, pytest.Function) and "s3_server" in item.fixturenames
        if needs_server and not any(mark.name in _MARKERS_WITH_SERVER for mark in item.iter_markers()):
            raise pytest.UsageError(f"{item.nodeid} needs the S3 server; mark it with pytest.mark.s3")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from serve(tmp_path_factory.mktemp("s3"))


@pytest.fixture
def s3(s3_server: S3Server, credentials: Callable[..., Path]) -> S3Server:
    """The server, with its credentials in the environment as a pod has them."""
    credentials(KEY_ID, SECRET)
    return s3_server


@pytest.fixture(scope="session")
def s3_client(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> S3:
    """A client that tests share, because it takes longer to create one than to use it."""
    folder = tmp_path_factory.mktemp("credentials")
    for name, value in (("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)):
        (folder / name).write_text(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(S3_CREDENTIALS_DIR_ENV, str(folder))
        client = S3(s3_server.storage)
        for bucket in ("data", "models", "results"):
            client.bucket(bucket)
    return client


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that writes a mounted Secret without the keys that are None."""

    def write(key_id: str | None, secret: str | None) -> Path:
        folder = tmp_path / "credentials"
        folder.mkdir(exist_ok=True)
        for name, value in (("AWS_ACCESS_KEY_ID", key_id), ("AWS_SECRET_ACCESS_KEY", secret)):
            (folder / name).unlink(missing_ok=True)
            if value is not None:
                (folder / name).write_text(value + "\n")
        monkeypatch.setenv(S3_CREDENTIALS_DIR_ENV, str(folder))
        return folder

    return write


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A server of trainers that train with transformers."""
    from tests.support.trainer.fork_server import start_fork_server

    with start_fork_server("transformers", tmp_path_factory.mktemp("forks")) as server:
        yield server
