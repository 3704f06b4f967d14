"""What stands between the operator and the world, and fails on demand."""

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
from tests.operator.api_server import OPERATOR_TOKEN, free_port, session


@dataclass
class Fault:
    """What to answer instead."""

    method: str
    part: str
    status: int
    late: bool
    headers: dict[str, str]


class Served(ABC):
    """A web server in a thread of its own: when kopf stops, it cancels every task of its loop, whoever made it."""

    def __init__(self) -> None:
        self.port = free_port()
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
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def right(request: web.Request) -> tuple[str, str, str] | None:
    """Verb, group and resource that a request has to have the right to; none for what is no resource's."""
    kind, *parts = request.path.strip("/").split("/")
    group = "" if kind == "api" else parts.pop(0) if parts else ""
    parts = parts[1:]  # the version
    if parts[:1] == ["namespaces"] and len(parts) > 2:
        parts = parts[2:]
    if not parts:
        return None
    read = "watch" if "watch" in request.query else "get" if len(parts) > 1 else "list"
    return VERBS.get(request.method, read), group, "/".join([parts[0], *parts[2:]])


_LEASES = "/leases"
Trouble = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""What happens to a request before it is passed on; an answer is given instead."""


async def healthy(_: web.Request) -> None:
    """Nothing."""


def failure(status: int, **headers: str) -> web.Response:
    """What an API server in trouble says."""
    body = {"kind": "Status", "status": "Failure", "reason": "Injected", "message": "injected", "code": status}
    return web.json_response(
        body, status=status, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )


class Proxy(Served):
    """Stands between operator and API server."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        self.rights: set[tuple[str, str, str]] = set()
        """What was asked for, as roles name it: verb, group and resource."""
        self.selectors: dict[str, set[str]] = {}
        """Which label selectors each collection was read with."""
        self.calls = 0
        """Requests but for watches and the Lease, which is asked for by the clock."""
        self.leases: list[str] = []
        """Methods of the requests for the Lease."""
        self.dies_at: int | None = None
        """The call whose answer the operator does not live to see."""
        self.died = threading.Event()
        self.trouble: Trouble = healthy

    async def open(self) -> None:
        self._stack = AsyncExitStack()
        self._session = await self._stack.enter_async_context(session(OPERATOR_TOKEN))
        await super().open()

    async def close(self) -> None:
        await super().close()
        await self._stack.aclose()

    def fail(self, method: str, part: str, status: int, late: bool = False, **headers: str) -> None:
        """Fail the next request of that method with that part in its path; if `late`, after it had its effect."""
        self.faults.append(Fault(method, part, status, late, headers))

    def writes(self) -> list[tuple[str, str]]:
        """What changed something, Events apart."""
        return [each for each in self.seen if each[0] != "GET" and not each[1].endswith("/events")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if answer := await self.trouble(request):
            return answer
        if request.method == "GET":
            plural = request.path.rpartition("/")[2]
            self.selectors.setdefault(plural, set()).add(request.query.get("labelSelector", ""))
        fault = self._fault(request)
        if fault and not fault.late:
            return failure(fault.status, **fault.headers)
        data = await request.read() or None  # an empty body would be given a content type
        headers = {key: value for key, value in request.headers.items() if key in ("Content-Type", "Accept")}
        url = self.target + request.path_qs
        async with self._session.request(
            request.method, url, data=data, headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            if fault:
                await answer.read()
                return failure(fault.status, **fault.headers)
            if self._dies(request):
                await answer.read()
                self.died.set()
                await asyncio.sleep(60)  # nobody waits for it
            response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.content_type})
            await response.prepare(request)
            with suppress(ConnectionResetError):  # the operator was killed
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
            return response

    def _note(self, request: web.Request) -> None:
        if needed := right(request):
            self.rights.add(needed)
        if _LEASES in request.path:
            self.leases.append(request.method)
            return
        self.seen.append((request.method, request.path))
        self.calls += "watch" not in request.query

    def _dies(self, request: web.Request) -> bool:
        if _LEASES in request.path:
            return False
        return self.died.is_set() or ("watch" not in request.query and self.calls == self.dies_at)

    def _fault(self, request: web.Request) -> Fault | None:
        found = next((f for f in self.faults if f.method == request.method and f.part in request.path), None)
        if found:
            self.faults.remove(found)
        return found


class Trainer(Served):
    """A pod's `GET /progress`: answers with `answer`, or as `handler` says."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: Any = {}
        self.handler: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        return await self.handler(request) if self.handler else web.json_response(self.answer)
