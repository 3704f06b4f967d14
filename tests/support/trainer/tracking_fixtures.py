"""One MLflow server for all tests, because creating its database takes seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.trainer.tracking_servers import MlflowServer, mlflow_server


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as server:
        yield server
