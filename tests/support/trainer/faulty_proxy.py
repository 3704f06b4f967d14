"""A proxy in front of the S3 server that injects faults."""

from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message


@dataclass
class Fault:
    """A fault for requests of one method whose path contains `key`."""

    kind: str
    """`reset`, `delay`, `stall`, `flip` (a bit of the body), `late` (executed, response lost), or an HTTP status."""
    method: str = "GET"
    key: str = "/"
    times: int = 1

    @property
    def error_body(self) -> bytes:
        codes = {
            "200": "InternalError",
            "400": "ExpiredToken",
            "501": "NotImplemented",
            "503": "SlowDown",
            "500": "InternalError",
            "409": "ConditionalRequestConflict",
            "412": "PreconditionFailed",
            "403": "AccessDenied",
        }
        return f"<Error><Code>{codes[self.kind]}</Code><Message>no</Message></Error>".encode()


class FaultyProxy(http.server.ThreadingHTTPServer):
    """A forward proxy in front of the S3 server that records requests and injects faults."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ForwardHandler)
        self.written_paths: list[str] = []
        self.read_paths: list[str] = []
        self.on_write: Callable[[str], None] = lambda path: None
        """Called when the store has executed a write, before the client receives the response."""
        self.on_read: Callable[[str], None] = lambda path: None
        """Called when the store has executed a GET, before the client receives the response."""
        self.truncations_left = 0
        """Number of responses whose object body is cut in half."""
        self.dropped_key = "\0"
        """Writes to keys that contain this are dropped, as if the client had been killed before them."""
        self.stalled_key = "\0"
        """Requests for keys that contain this get no response."""
        self.stall_started = threading.Event()
        self.ignores_conditions = False
        """If-Match and If-None-Match never reject a write, as in older stores."""
        self.faults: list[Fault] = []
        """Further faults, each injected `times` times."""

    def take_fault(self, method: str, path: str) -> Fault | None:
        """Return the next fault for this request and count it, or return None."""
        for planned in self.faults:
            if planned.times > 0 and planned.method == method and planned.key in path:
                planned.times -= 1
                return planned
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of connections to killed clients."""


class _ForwardHandler(http.server.BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    _response_fault: Fault | None = None

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            self.server.written_paths.append(self.path)
        elif self.command in ("GET", "HEAD"):
            self.server.read_paths.append(self.path)
        if self.server.dropped_key in self.path and self.command == "PUT":
            self.close_connection = True
            return
        if self.server.stalled_key in self.path:
            self.server.stall_started.set()
            time.sleep(60)
        fault = self.server.take_fault(self.command, self.path)
        if fault and self._apply_fault(fault):
            return
        self._response_fault = fault
        self._forward(body)

    def _forward(self, body: bytes) -> None:
        """Let the store execute the request, and send its response to the client."""
        request = urllib.request.Request(self.path, body or None, dict(self.headers.items()), method=self.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request) as answer:
                response = (answer.status, answer.headers, answer.read())
                if self.command == "PUT":
                    self.server.on_write(self.path)
        except urllib.error.HTTPError as error:
            with error:
                response = self._error_response(error)
        if self.command == "GET":
            self.server.on_read(self.path)
        self._send_response(*response)

    def _error_response(self, error: urllib.error.HTTPError) -> tuple[int, Message, bytes]:
        if error.code == 412 and self.command == "PUT" and self.server.ignores_conditions:
            headers = Message()
            headers["ETag"], headers["Content-Length"] = '"1"', "0"
            return 200, headers, b""
        return error.code, error.headers, error.read()

    def _apply_fault(self, fault: Fault) -> bool:
        """Apply a fault. Return True if the request must not reach the store."""
        if fault.kind in ("delay", "stall"):
            time.sleep(2 if fault.kind == "delay" else 20)
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return True
        elif fault.kind.isdigit():
            headers = Message()
            headers["Content-Length"] = str(len(fault.error_body))
            self._response_fault = None
            self._send_response(int(fault.kind), headers, b"" if self.command == "HEAD" else fault.error_body)
            return True
        return False

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _send_response(self, status: int, headers: Message, body: bytes) -> None:
        if self._response_fault and self._response_fault.kind == "late":
            self.close_connection = True
            return
        if self._response_fault and self._response_fault.kind == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        is_truncated = self.server.truncations_left > 0 and self.command == "GET" and "list-type" not in self.path
        self.server.truncations_left -= is_truncated
        self.wfile.write(body[: len(body) // 2] if is_truncated else body)
        self.close_connection = is_truncated

    def log_message(self, format: str, *args: object) -> None:
        pass
