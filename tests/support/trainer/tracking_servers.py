"""A real MLflow server, and servers that do not respond or reject every request."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.trainer.s3_server import free_port

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_SERVER_ENV = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it starts seven processes that the tests do not need
}


class MlflowServer:
    """A running MLflow server, and reading its runs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def get_run(self, experiment: str) -> Run:
        """Return the only run of an experiment."""
        (run,) = self.client().search_runs([self.client().get_experiment_by_name(experiment).experiment_id])
        return run

    def get_history(self, run: Run, metric: str) -> list[tuple[int, float]]:
        """Return all values of a metric with their steps, by step."""
        measurements = self.client().get_metric_history(run.info.run_id, metric)
        return sorted((measurement.step, measurement.value) for measurement in measurements)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    port = free_port()
    line = [sys.executable, "-W", "ignore", "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    log = (folder / "server.log").open("w")
    with log, subprocess.Popen(line, env=os.environ | _SERVER_ENV, stdout=log, stderr=log, cwd=folder) as process:
        try:
            _wait_until_healthy(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
            yield MlflowServer(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


def _wait_until_healthy(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        assert process.poll() is None, log.read_text()
        try:
            opener.open(url, timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


@contextmanager
def serve_without_answering() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class _UnauthorizedHandler(http.server.BaseHTTPRequestHandler):
    authorizations: list[str]

    def do_GET(self) -> None:
        self.authorizations.append(self.headers.get("Authorization", ""))
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serve_unauthorized() -> Iterator[tuple[str, list[str]]]:
    """Yield the URL of a server that responds 401 to everything, and the Authorization headers that it received."""
    authorizations: list[str] = []
    handler = type("Handler", (_UnauthorizedHandler,), {"authorizations": authorizations})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", authorizations
        server.shutdown()
