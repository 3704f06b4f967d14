"""HTTP transport to the API server: metrics, errors, renewed logins and the server's clock.

The official client sends the requests. Objects stay plain dictionaries: its models cost more time than the request, and
drop fields that its version does not know.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration

from finetune_operator.api.objects import Body
from finetune_operator.kube.login import LoginError, get_authorization, load_configuration
from finetune_operator.telemetry import counters

_CONTENT_TYPES = {"PATCH": "application/merge-patch+json"}
"""Content types other than JSON, by HTTP method."""
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)  # the transport has one that includes the login
_MIN_LOGIN_INTERVAL = 10.0
"""Minimum number of seconds between two logins. Logins of rejected users would call an exec plug-in all the time."""
_MAX_RETRY_AFTER = 300.0
"""Maximum number of seconds that a response may delay the next request."""
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


class InvalidResponseError(aiohttp.ClientError):
    """A response without an error status is not what the API server sends, such as the login page of a proxy."""


class CertificateError(aiohttp.ClientError):
    """The certificate of the API server is not valid."""


CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, LoginError)
"""Raised if there is no response from the API server."""


Decoded = TypeVar("Decoded")
_BODY_DECODER = msgspec.json.Decoder(dict[str, Any])


def _permit() -> None:
    """Permit a request."""


class _Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Body | None = None
    check_permission: Callable[[], None] = _permit
    """Called each time before the request is sent. It raises an error if the request must not be sent any more."""


class _Response(NamedTuple):
    status: int
    retry_after: str | None
    """The header `Retry-After`."""
    content: bytearray


class Transport:
    """Sends requests to the API server."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._server_time = (datetime.now(UTC), time.monotonic())
        """The API server's time, and the monotonic time when it was received."""
        self._last_date_header = ""
        """The header that it was read from, with a resolution of one second."""
        self._login_task: asyncio.Task[None] | None = None
        self._pending_requests = Counter[ApiClient]()
        """The number of requests of each client. One that was replaced is closed after its last."""

    async def open(self, log_in: Callable[[], Awaitable[Configuration]] = load_configuration) -> None:
        """Log in. Must be called before the first request. Raises `LoginError`.

        `log_in` is called again if the API server rejects the credentials: a token or certificate has expired.
        """
        self._log_in = log_in
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.shield(self._start_login())
        except TimeoutError as error:
            raise LoginError(f"no login within {self._timeout} s: does the exec plug-in wait for input?") from error

    def now(self) -> datetime:
        """Return the time of the API server's clock, which sets the times in objects. The local clock may differ."""
        server_time, read_at = self._server_time
        return server_time + timedelta(seconds=time.monotonic() - read_at)

    async def close(self) -> None:
        """Close the connections."""
        while self._pending_requests:
            client, _ = self._pending_requests.popitem()
            await client.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Body | None = None,
        check_permission: Callable[[], None] = _permit,
    ) -> Body:
        """Send a request and return the decoded body. A PATCH is a merge patch.

        Raises `ApiError`, one of `CONNECTION_ERRORS`, or what `check_permission` raises: it is called each time before
        the request is sent, which may be after a login.
        """
        request = _Request(method, path, query or {}, body, check_permission)
        return decode_response(await self._send_measured(request), _BODY_DECODER)

    async def read_raw(self, path: str, query: dict[str, str]) -> bytearray:
        """Return the undecoded body of a GET request. Raises the same errors as `call`."""
        return await self._send_measured(_Request("GET", path, query))

    async def _send_measured(self, request: _Request) -> bytearray:
        verb, resource = parse_verb_and_resource(request.method, request.path)
        started, code = time.perf_counter(), "none"
        try:
            response = await self._send_authenticated(request)
            code = str(response.status)
        finally:
            counters.API_REQUESTS.labels(verb, resource, code).inc()
            counters.API_REQUEST_SECONDS.labels(verb, resource).observe(time.perf_counter() - started)
        if response.status >= 400:
            raise _build_api_error(response)
        return response.content

    async def _send_authenticated(self, request: _Request) -> _Response:
        """Send a request. If the credentials are rejected, which means that it had no effect, log in and repeat it."""
        async with asyncio.timeout(self._timeout):
            client = self._client
            response = await self._send_tracked(client, request)
            if response.status == 401 and (renewed_client := await self._renew_client(client)) is not client:
                return await self._send_tracked(renewed_client, request)
            return response

    async def _send_tracked(self, client: ApiClient, request: _Request) -> _Response:
        self._pending_requests[client] += 1
        try:
            return await self._send_request(client, request)
        finally:
            self._pending_requests[client] -= 1
            await self._close_if_unused(client)

    async def _send_request(self, client: ApiClient, request: _Request) -> _Response:
        headers = await self._build_headers(client, request)
        request.check_permission()
        parameters = urlencode({key: value for key, value in request.query.items() if value})
        url = f"{client.configuration.host}{request.path}{'?' if parameters else ''}{parameters}"
        try:
            wrapper = await client.call_api(request.method, url, headers, request.body, _request_timeout=_NO_TIMEOUT)
        except aiohttp.ClientConnectorCertificateError as error:
            raise _build_certificate_error(client.configuration.host, error) from error
        async with wrapper.response as response:
            self._record_server_time(response.headers.get("Date", ""))
            content = bytearray()
            async for chunk in response.content.iter_any():  # `read` would hold all chunks and then join them
                content += chunk
            return _Response(response.status, response.headers.get("Retry-After"), content)

    async def _build_headers(self, client: ApiClient, request: _Request) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "finetune-operator"}
        headers["Content-Type"] = _CONTENT_TYPES.get(request.method, "application/json")
        if authorization := await get_authorization(client.configuration):
            headers["Authorization"] = authorization
        return headers

    async def _renew_client(self, rejected: ApiClient) -> ApiClient:
        """Return a client with other credentials, or the rejected one if these are new."""
        if self._client is rejected:
            if time.monotonic() - self._logged_in_at < _MIN_LOGIN_INTERVAL:
                return rejected
            await asyncio.shield(self._start_login())
        return self._client

    def _start_login(self) -> asyncio.Task[None]:
        """Return the login that is running, otherwise start one.

        It is not cancelled with those that wait for it: an exec plug-in that hangs must not be started repeatedly.
        """
        if self._login_task is None or self._login_task.done():
            self._login_task = asyncio.create_task(self._replace_client(), name="login")
        return self._login_task

    async def _replace_client(self) -> None:
        self._client = await self._create_client()
        self._pending_requests[self._client] = 0
        for client in [*self._pending_requests]:
            await self._close_if_unused(client)

    async def _close_if_unused(self, client: ApiClient) -> None:
        """Close a client that was replaced, after its last request: aiohttp fails those that it interrupts."""
        if client is not self._client and not self._pending_requests[client]:
            del self._pending_requests[client]
            await client.close()

    async def _create_client(self) -> ApiClient:
        self._logged_in_at = time.monotonic()
        configuration = await self._log_in()
        try:
            return ApiClient(configuration)
        except OSError as error:  # ssl.SSLError is one
            raise LoginError(f"cannot read the certificates for {configuration.host}: {error}") from error

    def _record_server_time(self, date_header: str) -> None:
        """Remember the server's time. The first response within a second is closest to the start of that second."""
        if date_header != self._last_date_header:
            with suppress(ValueError):
                self._last_date_header, self._server_time = (
                    date_header,
                    (parsedate_to_datetime(date_header).astimezone(UTC), time.monotonic()),
                )


def decode_response(content: bytearray, decoder: msgspec.json.Decoder[Decoded]) -> Decoded:
    """Return the decoded body of a response. Raises `InvalidResponseError`, which is one of `CONNECTION_ERRORS`."""
    try:
        return decoder.decode(content)
    except msgspec.DecodeError as error:
        start = content[:200].decode(errors="replace")
        raise InvalidResponseError(f"the response is not from the API server ({error}): {start}") from error


def parse_verb_and_resource(method: str, path: str) -> tuple[str, str]:
    """Return verb and resource as in RBAC: `GET /api/v1/namespaces/a/pods/b/status` is `get` of `pods/status`."""
    parts = path.strip("/").split("/")
    parts = parts[3:] if parts[0] == "apis" else parts[2:]
    if parts[0] == "namespaces" and len(parts) > 2:
        parts = parts[2:]
    verb = "list" if method == "GET" and len(parts) == 1 else _VERB_BY_METHOD[method]
    return verb, "/".join([parts[0], *parts[2:]])


def _build_api_error(response: _Response) -> ApiError:
    """Build the error of a response. Its body may be anything, because proxies send pages of their own."""
    try:
        status_object = msgspec.json.decode(response.content)
    except ValueError:
        status_object = {}
    reason, message = (
        (status_object.get("reason"), status_object.get("message")) if isinstance(status_object, dict) else (None, None)
    )
    return ApiError(
        response.status,
        str(reason or "Unknown"),
        str(message or response.content[:200].decode(errors="replace")),
        _parse_retry_after(response.retry_after or ""),
    )


def _parse_retry_after(text: str) -> float:
    """Return the seconds of the header. A proxy may send a date or nonsense instead."""
    return min(float(text), _MAX_RETRY_AFTER) if text.isascii() and text.isdigit() else 0.0


def _build_certificate_error(server: str, error: aiohttp.ClientConnectorCertificateError) -> CertificateError:
    """Build an error of one line. That of aiohttp contains the representations of Python objects."""
    cause = error.certificate_error
    reason = cause.verify_message if isinstance(cause, ssl.SSLCertVerificationError) else str(cause)
    return CertificateError(
        f"the certificate of {server} is not valid: {reason}; check the server's address and the certificate authority"
    )
