"""A proxy with faults between the operator and the API server, and a fake trainer."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web
from tests.support.operator.api_server import OPERATOR_TOKEN, find_free_port, open_session


@dataclass
class Fault:
    """A response that replaces the real one."""

    method: str
    path_part: str
    status: int
    after_effect: bool
    headers: dict[str, str]


class ThreadedServer(ABC):
    """A web server in its own thread. kopf cancels all tasks of its event loop when it stops."""

    def __init__(self) -> None:
        self.port = find_free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @abstractmethod
    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer any request."""

    async def open(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def close(self) -> None:
        await self._runner.cleanup()
        pending_tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending_tasks:
            task.cancel()
        await asyncio.gather(*pending_tasks, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


WRITE_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def required_permission(request: web.Request) -> tuple[str, str, str] | None:
    """Return verb, group and resource of the permission that a request needs, or None for other paths."""
    prefix, *parts = request.path.strip("/").split("/")
    group = "" if prefix == "api" else parts.pop(0) if parts else ""
    parts = parts[1:]  # the version
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    if not parts:
        return None
    read_verb = "watch" if "watch" in request.query else "get" if len(parts) > 1 else "list"
    return WRITE_VERBS.get(request.method, read_verb), group, "/".join([parts[0], *parts[2:]])


_LEASES_PATH = "/leases"
Interceptor = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""A function that is called before a request is forwarded. A response that it returns replaces the server's."""


async def pass_through(_: web.Request) -> None:
    """Intercept no request."""


def build_error_response(status: int, **headers: str) -> web.Response:
    """Build the response of a failing API server."""
    body = {"kind": "Status", "status": "Failure", "reason": "Injected", "message": "injected", "code": status}
    return web.json_response(
        body, status=status, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


class FaultProxy(ThreadedServer):
    """A proxy between operator and API server."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.permissions: set[tuple[str, str, str]] = set()
        """Verb, group and resource of each request, as in the rules of a role."""
        self.selectors: dict[str, set[str]] = {}
        """Label selectors with which each collection was read."""
        self.request_count = 0
        """Number of requests, without watches and the periodic requests for the Lease."""
        self.lease_methods: list[str] = []
        """Methods of the requests for the Lease."""
        self.kill_at_request: int | None = None
        """Number of the request that is executed, but whose response the operator does not get before it is killed."""
        self.killed = threading.Event()
        self.interceptor: Interceptor = pass_through

    async def open(self) -> None:
        self._stack = AsyncExitStack()
        self._session = await self._stack.enter_async_context(open_session(OPERATOR_TOKEN))
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self._stack.aclose()

    def fail_next(self, method: str, path_part: str, status: int, after_effect: bool = False, **headers: str) -> None:
        """Fail the next request with that method and path part. If `late`, the request is executed before."""
        self.faults.append(Fault(method, path_part, status, after_effect, headers))

    def list_writes(self) -> list[tuple[str, str]]:
        """Return all writes except Events."""
        return [request for request in self.requests if request[0] != "GET" and not request[1].endswith("/events")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self._record(request)
        if answer := await self.interceptor(request):
            return answer
        if request.method == "GET":
            plural = request.path.rpartition("/")[2]
            self.selectors.setdefault(plural, set()).add(request.query.get("labelSelector", ""))
        fault = self._take_fault(request)
        if fault and not fault.after_effect:
            return build_error_response(fault.status, **fault.headers)
        data = await request.read() or None  # an empty body would be given a content type
        headers = {key: value for key, value in request.headers.items() if key in ("Content-Type", "Accept")}
        url = self.target + request.path_qs
        async with self._session.request(
            request.method, url, data=data, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            if fault:
                await answer.read()
                return build_error_response(fault.status, **fault.headers)
            if self._is_kill_point(request):
                await answer.read()
                self.killed.set()
                await asyncio.sleep(60)  # the operator is dead
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the operator was killed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response

    def _record(self, request: web.Request) -> None:
        if permission := required_permission(request):
            self.permissions.add(permission)
        if _LEASES_PATH in request.path:
            self.lease_methods.append(request.method)
            return
        self.requests.append((request.method, request.path))
        self.request_count += "watch" not in request.query

    def _is_kill_point(self, request: web.Request) -> bool:
        if _LEASES_PATH in request.path:
            return False
        return self.killed.is_set() or ("watch" not in request.query and self.request_count == self.kill_at_request)

    def _take_fault(self, request: web.Request) -> Fault | None:
        fault = next(
            (
                candidate
                for candidate in self.faults
                if candidate.method == request.method and candidate.path_part in request.path
            ),
            None,
        )
        if fault:
            self.faults.remove(fault)
        return fault


class FakeTrainer(ThreadedServer):
    """Serves `GET /progress` of a pod: responds with `answer`, or with `handler`."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = {}
        self.handler: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await self.handler(request) if self.handler else web.json_response(self.answer)
