"""One request of the API server: sent, measured, and its answer understood.

Bodies stay plain objects: turning each into a client library's models costs more than the call, and drops fields that
its version does not know.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import aiohttp
import msgspec

from finetune_operator.telemetry import counters

Body = dict[str, Any]
MERGE_PATCH = "application/merge-patch+json"

_FRESH = 60.0
"""Seconds that a token is used before it is read anew: kubelets replace those of service accounts."""
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after
        """Seconds that the server asks to wait."""


NO_ANSWER = (aiohttp.ClientError, TimeoutError)
"""What is raised where the API server does not answer."""


class Access(Protocol):
    """How the API server is reached, by which right."""

    @property
    def server(self) -> str: ...

    def as_http_headers(self) -> dict[str, str]: ...

    def as_ssl_context(self) -> ssl.SSLContext: ...


class Transport:
    """Connections to the API server."""

    def __init__(self, timeout: float) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._told = (datetime.now(UTC), time.monotonic())
        """The API server's time, and when it told it."""
        self._date = ""
        """The same as it stood in the answer, which tells whole seconds."""

    def open(self, log_in: Callable[[], Access]) -> None:
        """To be done before the first call. `log_in` is asked again now and then."""
        access = log_in()
        self._log_in = log_in
        self._server = access.server.rstrip("/")
        self._headers, self._read = access.as_http_headers(), time.monotonic()
        headers = {"Accept": "application/json", "User-Agent": "finetune-operator"}
        connector = aiohttp.TCPConnector(ssl=access.as_ssl_context())
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=headers)

    def now(self) -> datetime:
        """By the API server's clock, which writes the times in objects; that of this machine may be wrong."""
        told, when = self._told
        return told + timedelta(seconds=time.monotonic() - when)

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
        """The answer's body. Raises `ApiError`, or one of `NO_ANSWER`."""
        answer: Body = msgspec.json.decode(await self._ask(method, path, query, body, content_type))
        return answer

    async def read(self, path: str, query: dict[str, str]) -> bytearray:
        """What lies there, as it came. Raises the same."""
        return await self._ask("GET", path, query, None, "application/json")

    async def _ask(
        self, method: str, path: str, query: dict[str, str] | None, body: Body | None, content_type: str
    ) -> bytearray:
        verb, resource = verb_and_resource(method, path)
        began, code = time.perf_counter(), "none"
        try:
            status, retry_after, text = await self._send(method, path, query, body, content_type)
            code = str(status)
        finally:
            counters.API_REQUESTS.labels(verb, resource, code).inc()
            counters.API_SECONDS.labels(verb, resource).observe(time.perf_counter() - began)
        if status >= 400:
            raise _error(status, retry_after, text)
        return text

    async def _send(
        self, method: str, path: str, query: dict[str, str] | None, body: Body | None, content_type: str
    ) -> tuple[int, str | None, bytearray]:
        headers = self._authorization() if body is None else {**self._authorization(), "Content-Type": content_type}
        data = None if body is None else msgspec.json.encode(body)
        asked = {key: value for key, value in (query or {}).items() if value}
        url = f"{self._server}{path}"
        async with self._session.request(method, url, params=asked, data=data, headers=headers) as response:
            self._note(response.headers.get("Date", ""))
            text = bytearray()
            async for chunk in response.content.iter_any():  # `read` keeps all chunks until the last one has come
                text += chunk
            return response.status, response.headers.get("Retry-After"), text

    def _note(self, date: str) -> None:
        """Of the answers of one second the first tells best when it began."""
        if date != self._date:
            with suppress(ValueError):
                self._date, self._told = date, (parsedate_to_datetime(date), time.monotonic())

    def _authorization(self) -> dict[str, str]:
        if time.monotonic() - self._read > _FRESH:
            self._headers, self._read = self._log_in().as_http_headers(), time.monotonic()
        return self._headers


def verb_and_resource(method: str, path: str) -> tuple[str, str]:
    """As a role names them: `/api/v1/namespaces/a/pods/b/status` is read by `get` of `pods/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    verb = "list" if method == "GET" and len(parts) == 1 else _VERBS[method]
    return verb, "/".join([parts[0], *parts[2:]])


def _error(status: int, retry_after: str | None, text: bytearray) -> ApiError:
    """Proxies answer with pages of their own, so anything may stand in an error's body."""
    try:
        said = msgspec.json.decode(text)
    except ValueError:
        said = {}
    reason, message = (said.get("reason"), said.get("message")) if isinstance(said, dict) else (None, None)
    wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
    return ApiError(status, str(reason or "Unknown"), str(message or text[:200].decode(errors="replace")), wait)
