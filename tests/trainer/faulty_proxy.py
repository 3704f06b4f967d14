"""A proxy in front of the S3 server that misbehaves as it is told."""

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
    """Something that goes wrong with requests of one method for keys that hold `key`."""

    kind: str
    """`reset`, `delay`, `stall`, `flip` (one bit of the answer), `late` (done, but the answer is lost), or a status."""
    method: str = "GET"
    key: str = "/"
    times: int = 1

    @property
    def answer(self) -> bytes:
        codes = {
            "200": "InternalError",
            "400": "ExpiredToken",
            "503": "SlowDown",
            "500": "InternalError",
            "409": "ConditionalRequestConflict",
            "412": "PreconditionFailed",
        }
        return f"<Error><Code>{codes[self.kind]}</Code><Message>no</Message></Error>".encode()


class FaultyProxy(http.server.ThreadingHTTPServer):
    """A forward proxy in front of the S3 server that notes what is written and misbehaves as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.written: list[str] = []
        self.after_write: Callable[[str], None] = lambda path: None
        """Called when the store has done a write, before the writer hears of it."""
        self.cuts = 0
        """So many object bodies end half way."""
        self.drops = "\0"
        """Writes to keys that hold this are swallowed, as if the writer had died just before."""
        self.stalls = "\0"
        """Reads of keys that hold this are never answered."""
        self.stalled = threading.Event()
        self.unconditional = False
        """No write is refused for its If-Match or If-None-Match, as with older stores."""
        self.faults: list[Fault] = []
        """What else goes wrong; each so often as it says."""

    def fault(self, method: str, path: str) -> Fault | None:
        """The next fault for this request, which is used up."""
        for each in self.faults:
            if each.times > 0 and each.method == method and each.key in path:
                each.times -= 1
                return each
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed go away without a word."""


class _Forward(http.server.BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    _fault: Fault | None = None

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            self.server.written.append(self.path)
        if self.server.drops in self.path and self.command == "PUT":
            self.close_connection = True
            return
        if self.server.stalls in self.path:
            self.server.stalled.set()
            time.sleep(60)
        fault = self.server.fault(self.command, self.path)
        if fault and self._fails(fault):
            return
        self._fault = fault
        request = urllib.request.Request(self.path, body or None, dict(self.headers.items()), method=self.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request) as answer:
                if self.command == "PUT":
                    self.server.after_write(self.path)
                self._pass_on(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self._pass_on(*self._refusal(error))

    def _refusal(self, error: urllib.error.HTTPError) -> tuple[int, Message, bytes]:
        if error.code == 412 and self.command == "PUT" and self.server.unconditional:
            accepted = Message()
            accepted["ETag"], accepted["Content-Length"] = '"1"', "0"
            return 200, accepted, b""
        return error.code, error.headers, error.read()

    def _fails(self, fault: Fault) -> bool:
        """Whether the request never reaches the store."""
        if fault.kind in ("delay", "stall"):
            time.sleep(2 if fault.kind == "delay" else 20)
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return True
        elif fault.kind.isdigit():
            headers = Message()
            headers["Content-Length"] = str(len(fault.answer))
            self._fault = None
            self._pass_on(int(fault.kind), headers, b"" if self.command == "HEAD" else fault.answer)
            return True
        return False

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _pass_on(self, status: int, headers: Message, body: bytes) -> None:
        if self._fault and self._fault.kind == "late":
            self.close_connection = True
            return
        if self._fault and self._fault.kind == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        cut = self.server.cuts > 0 and self.command == "GET" and "list-type" not in self.path
        self.server.cuts -= cut
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, format: str, *args: object) -> None:
        pass
