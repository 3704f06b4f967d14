"""HTTP transport to the API server: authentication, metrics, errors and the server's clock.

Objects stay plain dictionaries. A client library's models cost more time than the request, and drop fields that its
version does not know.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Protocol

import aiohttp
import msgspec

from finetune_operator.api.objects import Body
from finetune_operator.telemetry import counters

MERGE_PATCH = "application/merge-patch+json"

_TOKEN_REFRESH_SECONDS = 60.0
"""Seconds until a token is read again: the kubelet replaces those of service accounts."""
_VERB_BY_METHOD = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """An error response of the API server."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Minimum seconds until a retry, from the header `Retry-After`."""


CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError)
"""Raised if there is no response from the API server."""


class ConnectionInfo(Protocol):
    """Address and credentials of the API server."""

    @property
    def server(self) -> str: ...

    def as_http_headers(self) -> dict[str, str]: ...

    def as_ssl_context(self) -> ssl.SSLContext: ...


class Transport:
    """Sends requests to the API server."""

    def __init__(self, timeout: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._server_time = (datetime.now(UTC), time.monotonic())
        """The API server's time, and the monotonic time when it was received."""
        self._last_date_header = ""
        """The header that it was read from, with a resolution of one second."""

    def open(self, log_in: Callable[[], ConnectionInfo]) -> None:
        """Open the session. Must be called before the first request. `log_in` is called again to renew the token."""
        connection = log_in()
        self._log_in = log_in
        self._server = connection.server.rstrip("/")
        self._headers, self._headers_read_at = connection.as_http_headers(), time.monotonic()
        headers = {"Accept": "application/json", "User-Agent": "finetune-operator"}
        connector = aiohttp.TCPConnector(ssl=connection.as_ssl_context())
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=headers)

    def now(self) -> datetime:
        """Return the time of the API server's clock, which sets the times in objects. The local clock may differ."""
        server_time, read_at = self._server_time
        return server_time + timedelta(seconds=time.monotonic() - read_at)

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        """Send a request and return the decoded body. Raises `ApiError` or one of `CONNECTION_ERRORS`."""
        decoded: Body = msgspec.json.decode(await self._send_measured(method, path, query, body, content_type))
        return decoded

    async def read_raw(self, path: str, query: dict[str, str]) -> bytearray:
        """Return the undecoded body of a GET request. Raises the same errors as `call`."""
        return await self._send_measured("GET", path, query, None, "application/json")

    async def _send_measured(
        self, method: str, path: str, query: dict[str, str] | None, body: Body | None, content_type: str
    ) -> bytearray:
        verb, resource = parse_verb_and_resource(method, path)
        started, code = time.perf_counter(), "none"
        try:
            status, retry_after, content = await self._send_request(method, path, query, body, content_type)
            code = str(status)
        finally:
            counters.API_REQUESTS.labels(verb, resource, code).inc()
            counters.API_REQUEST_SECONDS.labels(verb, resource).observe(time.perf_counter() - started)
        if status >= 400:
            raise _build_api_error(status, retry_after, content)
        return content

    async def _send_request(
        self, method: str, path: str, query: dict[str, str] | None, body: Body | None, content_type: str
    ) -> tuple[int, str | None, bytearray]:
        headers = (
            self._get_auth_headers() if body is None else {**self._get_auth_headers(), "Content-Type": content_type}
        )
        encoded_body = None if body is None else msgspec.json.encode(body)
        parameters = {key: value for key, value in (query or {}).items() if value}
        url = f"{self._server}{path}"
        async with self._session.request(
            method, url, params=parameters, data=encoded_body, headers=headers
        ) as response:
            self._record_server_time(response.headers.get("Date", ""))
            content = bytearray()
            async for chunk in response.content.iter_any():  # `read` would hold all chunks and then join them
                content += chunk
            return response.status, response.headers.get("Retry-After"), content

    def _record_server_time(self, date_header: str) -> None:
        """Remember the server's time. The first response within a second is closest to the start of that second."""
        if date_header != self._last_date_header:
            with suppress(ValueError):
                self._last_date_header, self._server_time = (
                    date_header,
                    (parsedate_to_datetime(date_header), time.monotonic()),
                )

    def _get_auth_headers(self) -> dict[str, str]:
        if time.monotonic() - self._headers_read_at > _TOKEN_REFRESH_SECONDS:
            self._headers, self._headers_read_at = self._log_in().as_http_headers(), time.monotonic()
        return self._headers


def parse_verb_and_resource(method: str, path: str) -> tuple[str, str]:
    """Return verb and resource as in RBAC: `GET /api/v1/namespaces/a/pods/b/status` is `get` of `pods/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    verb = "list" if method == "GET" and len(parts) == 1 else _VERB_BY_METHOD[method]
    return verb, "/".join([parts[0], *parts[2:]])


def _build_api_error(status: int, retry_after: str | None, content: bytearray) -> ApiError:
    """Build the error of a response. Its body may be anything, because proxies send pages of their own."""
    try:
        status_object = msgspec.json.decode(content)
    except ValueError:
        status_object = {}
    reason, message = (
        (status_object.get("reason"), status_object.get("message")) if isinstance(status_object, dict) else (None, None)
    )
    retry_seconds = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    return ApiError(
        status, str(reason or "Unknown"), str(message or content[:200].decode(errors="replace")), retry_seconds
    )
