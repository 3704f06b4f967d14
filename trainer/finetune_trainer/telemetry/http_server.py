"""`GET /progress`, `/metrics` and `/healthz` on the pod's IP; the operator and Prometheus read them, nobody depends on
them."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finetune_trainer.contract import PROGRESS_PORT
from finetune_trainer.telemetry import prometheus
from finetune_trainer.telemetry.progress import ProgressReporter

log = logging.getLogger(__name__)

PORT_ENV = "FINETUNE_PROGRESS_PORT"
_CLIENT_TIMEOUT_SECONDS = 5  # a client that says nothing must not hold a thread


_IPV6_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _open_listening_socket(port: int) -> socket.socket:
    """A socket on all addresses, of both families where the host has them: a pod's own may be of either."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:  # the kernel has IPv6, this network namespace does not
            if error.errno not in _IPV6_UNAVAILABLE:
                raise
    return socket.create_server(("", port))


class _ProgressServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, progress: ProgressReporter) -> None:
        self.progress = progress
        listening_socket = _open_listening_socket(port)
        super().__init__(("", port), _ProgressHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening_socket
        self.server_port: int = listening_socket.getsockname()[1]

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _ProgressHandler(BaseHTTPRequestHandler):
    server: _ProgressServer
    timeout = _CLIENT_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer the three paths."""
        if self.path == "/progress":
            self._send_json(HTTPStatus.OK, self.server.progress.get_latest().to_json())
        elif self.path == "/metrics":
            self._send_response(
                HTTPStatus.OK, prometheus.CONTENT_TYPE, prometheus.render_metrics(self.server.progress.get_latest())
            )
        elif self.path == "/healthz":
            self._send_json(HTTPStatus.OK, {"status": "ok"})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "GET /progress, /metrics or /healthz"})

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send_response(status, "application/json", json.dumps(content).encode())

    def _send_response(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the operator asks every few seconds."""


def start_server(progress: ProgressReporter) -> int | None:
    """Serve in the background; the port, or None if it is taken, which must not end a run."""
    port = int(os.environ.get(PORT_ENV) or PROGRESS_PORT)
    try:
        server = _ProgressServer(port, progress)
    except OSError as error:
        log.warning("progress: not served, port %d: %s (%s sets another)", port, error.strerror, PORT_ENV)
        return None
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return server.server_port
