"""The client of one of `evaluation.endpoints`: within its budget, its time, and a maximum size of the reply."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from finetune_trainer.contract import CA_BUNDLE_ENV, ENDPOINT_CREDENTIALS_DIR_ENV, ENDPOINT_KEY, Endpoint, Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.graders.addresses import RefusedAddressError, resolve_address
from finetune_trainer.text import to_one_line

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1 << 20
_MAX_TRIES = 3
_MAX_WAIT_SECONDS = 30.0
_MAX_CONSECUTIVE_FAILURES = 10
"""Failed calls in a row after which the endpoint is not called again in this run."""
_HEARTBEAT_SECONDS = 5
_RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
_QUOTED_CHARS = 200


@dataclass(eq=False)
class CallError(Exception):
    """A call failed. The message is a clause without credentials."""

    message: str
    is_retried: bool = False
    """Whether another try may succeed."""
    wait_seconds: float = 0
    """Seconds that the server asks to wait."""
    status: int = 0
    """Status of the reply, or 0 without one."""
    is_sent: bool = True
    """Whether the body may have left the pod."""

    def __str__(self) -> str:
        return self.message


@dataclass
class EndpointUse:
    """What a run has sent to an endpoint."""

    calls: int = 0
    failures: int = 0
    cached: int = 0
    """Requests that were answered from earlier equal ones."""


@dataclass
class EndpointClient:
    """Sends JSON to an endpoint, and caches the replies for the run."""

    endpoint: Endpoint
    heartbeat: Callable[[], None] = lambda: None
    use: EndpointUse = field(default_factory=EndpointUse)
    _replies: dict[str, object] = field(default_factory=dict)
    _consecutive_failures: int = 0

    def __post_init__(self) -> None:
        self._token = _read_token(self.endpoint.name)
        parts = urlsplit(self.endpoint.uri)
        self.host = parts.hostname or ""
        self._scheme, self._port = parts.scheme, parts.port or (443 if parts.scheme == "https" else 80)

    def post_all(self, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[object | CallError]:
        """Return the JSON of the reply to each body, or why there is none. Equal bodies are sent once."""
        keys = [_compute_key(path, body) for body in bodies]
        new = {key: body for key, body in zip(keys, bodies, strict=True) if key not in self._replies}
        self.use.cached += len(keys) - len(new)
        outcomes = asyncio.run(self._post_new(path, new)) if new else {}
        self._replies |= {key: reply for key, reply in outcomes.items() if not isinstance(reply, CallError)}
        return [self._replies[key] if key in self._replies else outcomes[key] for key in keys]

    async def _post_new(self, path: str, bodies: Mapping[str, Mapping[str, Any]]) -> dict[str, object | CallError]:
        import httpx

        semaphore = asyncio.Semaphore(self.endpoint.concurrency)
        beat = asyncio.create_task(self._keep_beating())
        try:
            # The environment may name a proxy, which would connect to addresses that are refused here.
            timeout = self.endpoint.timeout_seconds
            async with httpx.AsyncClient(verify=_create_tls_context(), trust_env=False, timeout=timeout) as client:
                calls = [self._post_limited(client, semaphore, path, body) for body in bodies.values()]
                return dict(zip(bodies, await asyncio.gather(*calls), strict=True))
        finally:
            beat.cancel()

    async def _keep_beating(self) -> None:
        while True:
            self.heartbeat()
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _post_limited(
        self, client: httpx.AsyncClient, semaphore: asyncio.Semaphore, path: str, body: Mapping[str, Any]
    ) -> object | CallError:
        async with semaphore:
            try:
                reply = await self._post_with_retries(client, path, body)
            except CallError as error:
                return error
            return reply

    async def _post_with_retries(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> object:
        for attempt in range(1, _MAX_TRIES + 1):
            self._check_limits()
            self.use.calls += 1
            try:
                reply = await self._post(client, path, body)
            except CallError as error:
                self.use.failures += 1
                self._consecutive_failures += error.status != 400  # the server works, but refuses this body
                if not error.is_retried or attempt == _MAX_TRIES:
                    raise
                await asyncio.sleep(min(max(error.wait_seconds, 0.5 * 2**attempt), _MAX_WAIT_SECONDS))
            else:
                self._consecutive_failures = 0
                return reply
        raise AssertionError("the last try returns or raises")

    def _check_limits(self) -> None:
        if self.use.calls >= self.endpoint.max_calls:
            message = f"the budget of {self.endpoint.max_calls} calls of endpoint {self.endpoint.name} is used up"
            raise CallError(message, is_sent=False)
        if self._consecutive_failures >= _MAX_CONSECUTIVE_FAILURES:
            message = f"endpoint {self.endpoint.name} failed {_MAX_CONSECUTIVE_FAILURES} times in a row"
            raise CallError(message, is_sent=False)

    async def _post(self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> object:
        import httpx

        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                status, content, wait_seconds = await self._exchange(client, path, body)
        except TimeoutError as error:
            raise CallError(f"no reply in {self.endpoint.timeout_seconds} seconds", is_retried=True) from error
        except RefusedAddressError as error:
            raise CallError(str(error), is_sent=False) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise CallError(f"{type(error).__name__}: {self._quote(str(error))}", is_retried=True) from error
        if status != 200:
            text = self._quote(content.decode(errors="replace"))
            is_retried = status in _RETRIED_STATUSES
            message = f"status {status}: {text}" if text else f"status {status}"
            raise CallError(message, is_retried=is_retried, wait_seconds=wait_seconds, status=status)
        try:
            return json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CallError(f"the reply is not JSON: {self._quote(content.decode(errors='replace'))}") from error

    async def _exchange(
        self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any]
    ) -> tuple[int, bytes, float]:
        """Return status, content and the seconds to wait before the next try. Redirects are not followed."""
        address = await resolve_address(self.host, self._port)
        request = client.build_request(
            "POST",
            self._build_url(address, path),
            content=json.dumps(body, ensure_ascii=False).encode(errors="replace"),
            headers=self._build_headers(),
            extensions={"sni_hostname": self.host},  # the certificate is that of the name, not of the address
        )
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            content = b""
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    raise CallError(f"the reply has more than {MAX_REPLY_BYTES} bytes")
            return response.status_code, content, _read_wait(response.headers.get("retry-after", ""))
        finally:
            await response.aclose()

    def _build_url(self, address: str, path: str) -> str:
        host = f"[{address}]" if ":" in address else address
        return f"{self._scheme}://{host}:{self._port}{urlsplit(self.endpoint.uri).path.rstrip('/')}{path}"

    def _build_headers(self) -> dict[str, str]:
        headers = {"Host": urlsplit(self.endpoint.uri).netloc, "Content-Type": "application/json"}
        headers["Accept-Encoding"] = "identity"  # a compressed reply could be larger than its limit
        return headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _quote(self, text: str) -> str:
        """Return the beginning of a text of the server, without the token, which it may repeat."""
        redacted = text.replace(self._token, "[token]") if self._token else text
        return to_one_line(redacted.strip(), _QUOTED_CHARS)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _read_wait(text: str) -> float:
    """Return the seconds of a `Retry-After` header; 0 if it has a date or nothing."""
    return float(text) if text.isdecimal() and len(text) < 6 else 0.0


def _compute_key(path: str, body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([path, body], sort_keys=True).encode(errors="replace")).hexdigest()


def _read_token(endpoint_name: str) -> str:
    """Return the token of an endpoint, or an empty text without one. Raises `AUTH_FAILED`, without the token."""
    folder = os.environ.get(ENDPOINT_CREDENTIALS_DIR_ENV)
    path = Path(folder) / endpoint_name / ENDPOINT_KEY if folder else None
    if path is None or not path.exists():
        return ""
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        message = f"the key {ENDPOINT_KEY} of endpoint {endpoint_name} must be one word of printable ASCII characters"
        raise TrainerError(Reason.AUTH_FAILED, message)
    return token


def _create_tls_context() -> ssl.SSLContext:
    """Return the context that trusts the authorities of the storage as well, which are often those of the company."""
    context = ssl.create_default_context()
    bundle = os.environ.get(CA_BUNDLE_ENV)
    if bundle and Path(bundle).is_file():
        context.load_verify_locations(bundle)
    return context
