"""Pods that answer `GET /progress` in hostile ways, in a process of their own: `python hostile_pods.py PORT`.

One socket accepts connections to all addresses of 127.0.0.0/8. The third number of the address that a client connects
to chooses the behavior, so each behavior has 256 addresses.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

VALID_PROGRESS = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "lastUpdateTime": "t"}
_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
_VALID_RESPONSE = _HEAD + b"\r\n" + json.dumps(VALID_PROGRESS).encode()
_CHUNKED_RESPONSE = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_EARLY_HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
_MANY_KEYS = b"{" + b",".join(b'"%d":[]' % number for number in range(6000)) + b"}"


def _send_forever(start: bytes, repeated: bytes, pause_seconds: float = 0) -> Callable[[socket.socket], None]:
    def send(client: socket.socket) -> None:
        client.sendall(start)
        while True:
            client.sendall(repeated)
            time.sleep(pause_seconds)

    return send


def _send(response: bytes) -> Callable[[socket.socket], None]:
    return lambda client: client.sendall(response)


def _send_in_single_bytes(pause_seconds: float) -> Callable[[socket.socket], None]:
    def send(client: socket.socket) -> None:
        for byte in _VALID_RESPONSE:
            client.sendall(bytes([byte]))
            time.sleep(pause_seconds)

    return send


BEHAVIORS: dict[str, Callable[[socket.socket], None]] = {
    "valid, in single bytes": _send_in_single_bytes(0),
    "endless early hints": _send_forever(b"", _EARLY_HINT * 1000),
    "endless headers": _send_forever(_HEAD, b"X-Padding: a\r\n" * 4000),
    "endless body": _send_forever(_HEAD + b"\r\n", b" " * 65536),
    "endless chunks": _send_forever(_CHUNKED_RESPONSE, b"1\r\n{\r\n" * 10_000),
    "endless single bytes": _send_forever(_HEAD + b"\r\n", b" ", pause_seconds=0.001),
    "garbage": _send_forever(b"", os.urandom(65536)),
    "JSON with many keys": _send(_HEAD + b"\r\n" + _MANY_KEYS),
    "deep JSON": _send(_HEAD + b"\r\n" + b"[" * 60_000),
    "slow": _send_in_single_bytes(0.1),
    "closes": _send(b""),
    "never answers": lambda client: time.sleep(600),
}


def build_address(behavior: str, number: int) -> str:
    """Return the address of one of the 256 pods with that behavior."""
    return f"127.1.{list(BEHAVIORS).index(behavior)}.{number}"


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = self.request.getsockname()[0]
        with suppress(OSError):
            self.request.recv(4096)
            list(BEHAVIORS.values())[int(address.split(".")[2])](self.request)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 4096


@contextmanager
def run_hostile_pods(port: int) -> Iterator[None]:
    """Run all pods in a process."""
    process = subprocess.Popen([sys.executable, __file__, str(port)])
    try:
        _wait_until_served(port)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_until_served(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        with suppress(OSError), socket.create_connection((build_address("closes", 1), port), 1):
            return
        assert time.monotonic() < deadline, "the hostile pods do not listen"
        time.sleep(0.05)


if __name__ == "__main__":
    with _Server(("", int(sys.argv[1])), _Handler) as server:
        server.serve_forever()
