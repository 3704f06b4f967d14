"""Read the progress of one pod over HTTP.

The pod is untrusted, and HTTP clients limit what a body may cost, but not what comes before it: aiohttp parses interim
(1xx) responses without a limit. So this reads a bounded number of raw bytes, in a bounded number of reads, and accepts
only what the trainer sends: `HTTP/1.x 200`, headers, and a body that ends with the connection.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from pydantic import ValidationError

from finetune_trainer.contract import Progress

MAX_HEAD_BYTES = 8 * 1024
"""Maximum size of status line and headers."""
MAX_BODY_BYTES = 64 * 1024
_READ_INTERVAL = 0.02
"""Seconds between two reads. A pod that sends single bytes costs no more reads than one that sends large parts."""
_STATUS_LINES = (b"HTTP/1.0 200 ", b"HTTP/1.1 200 ")
_HEAD_END = b"\r\n\r\n"


class ProgressReader:
    """Reads the progress of pods, and validates one response at a time.

    A response within the limits may take milliseconds to validate. Other tasks run between two of them.
    """

    def __init__(self, port: int, timeout: float) -> None:
        self._port = port
        self._timeout = timeout
        """Seconds until a pod must have responded."""
        self._validation_lock = asyncio.Lock()

    async def read(self, host: str) -> Progress | None:
        """Return the progress of the pod with this IP address, or None if there is no valid response in time."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await _request_progress(host, self._port)
        except (TimeoutError, OSError, ValueError):  # ValueError: the address is not one of IPv4 or IPv6
            return None
        body = extract_body(response)
        if body is None:
            return None
        async with self._validation_lock:
            await asyncio.sleep(0)
            return _parse_progress(body)


async def _request_progress(host: str, port: int) -> bytes:
    """Return the response, cut at the first byte that makes it invalid. Raises `OSError`."""
    family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
    host_header = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    # Proxies of service meshes refuse HTTP/1.0.
    request = f"GET /progress HTTP/1.1\r\nHost: {host_header}\r\nConnection: close\r\n\r\n"
    loop = asyncio.get_running_loop()
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        await loop.sock_connect(connection, (host, port))
        await loop.sock_sendall(connection, request.encode())
        return await _receive(connection)


async def _receive(connection: socket.socket) -> bytes:
    """Return what is sent until the connection is closed, and at most one byte more than is allowed.

    A stream of asyncio would buffer up to 256 KiB per connection before it is read.
    """
    received = bytearray()
    max_bytes = MAX_HEAD_BYTES + MAX_BODY_BYTES + 1
    while len(received) < max_bytes and _may_become_valid(received):
        chunk = await asyncio.get_running_loop().sock_recv(connection, max_bytes - len(received))
        if not chunk:
            break
        received += chunk
        await asyncio.sleep(_READ_INTERVAL)
    return bytes(received)


def _may_become_valid(received: bytes | bytearray) -> bool:
    """Return whether the start of a response may be that of a valid one."""
    status_line = received[: len(_STATUS_LINES[0])]
    if not any(expected.startswith(status_line) for expected in _STATUS_LINES):
        return False
    return len(received) <= MAX_HEAD_BYTES or received.find(_HEAD_END, 0, MAX_HEAD_BYTES) >= 0


def extract_body(response: bytes) -> bytes | None:
    """Return the body of a complete response, or None if the response is not one that a trainer sends."""
    head, separator, body = response.partition(_HEAD_END)
    is_valid = separator and head.startswith(_STATUS_LINES) and _may_become_valid(response)
    if not is_valid or b"\r\ntransfer-encoding" in head.lower() or len(body) > MAX_BODY_BYTES:
        return None
    return body


def _parse_progress(body: bytes) -> Progress | None:
    try:
        return Progress.model_validate_json(body, extra="ignore")
    except ValidationError:
        return None
