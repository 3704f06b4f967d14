"""HTTP server of the pod: `GET /progress`, `/metrics` and `/healthz`.

The operator and Prometheus read them. The run does not depend on the server.
"""

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
"""Port that serves `/progress`, `/metrics` and `/healthz`. If unset, 8080."""
_CLIENT_TIMEOUT_SECONDS = 5  # a silent client must not occupy a thread


_IPV6_UNAVAILABLE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def _open_listening_socket(port: int) -> socket.socket:
    """Listen on all addresses, IPv4 and IPv6 where the host has both: the IP of a pod may be of either family."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:  # the kernel has IPv6, but this network namespace has not
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
        """Ignore clients that close the connection."""


class _ProgressHandler(BaseHTTPRequestHandler):
    server: _ProgressServer
    timeout = _CLIENT_TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Serve the three paths."""
        if self.path == "/progress":
            self._send_json(HTTPStatus.OK, self.server.progress.get_latest().to_json())
        elif self.path == "/metrics":
            progress = self.server.progress
            metrics = prometheus.render_metrics(progress.get_latest(), progress.model_cache)
            self._send_response(HTTPStatus.OK, prometheus.CONTENT_TYPE, metrics)
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
        """Log nothing: the operator sends a request every few seconds."""


def start_server(progress: ProgressReporter) -> int | None:
    """Serve in the background. Returns the port, or None if it is in use, which must not end a run."""
    port = int(os.environ.get(PORT_ENV) or PROGRESS_PORT)
    try:
        server = _ProgressServer(port, progress)
    except OSError as error:
        log.warning("progress is not served: port %d: %s (set %s to use another port)", port, error.strerror, PORT_ENV)
        return None
    threading.Thread(target=server.serve_forever, name="progress", daemon=True).start()
    return server.server_port
