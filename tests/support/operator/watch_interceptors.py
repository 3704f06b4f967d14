"""Interceptors of the operator's watches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import aiohttp
from aiohttp import web
from tests.support.operator import api_server as api


@asynccontextmanager
async def _open_watch(target: str, request: web.Request) -> AsyncIterator[aiohttp.StreamReader]:
    """Open a watch at the API server. Runs in the proxy's thread."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        api.open_session(api.OPERATOR_TOKEN) as session,
        session.get(target + request.path_qs, timeout=timeout) as response,
    ):
        yield response.content


async def _start_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    return response


class WatchGate:
    """Passes watches on, holds back their events (of existing watches, or of all), or ends them as expired."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.held_plural = ""
        """Plural of the kind whose watches are held back. Empty for all kinds."""
        self.mode: Literal["open", "held", "old ones held", "expired"] = "open"

    async def intercept(self, request: web.Request) -> web.StreamResponse | None:
        if "watch" not in request.query:
            return None
        if self.mode == "expired":
            return web.json_response({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        async with _open_watch(self._target, request) as lines:
            response, mode = await _start_stream(request), self.mode
            async for line in lines:
                while self._is_held(request.path) or (self.mode == "old ones held" != mode):
                    await asyncio.sleep(0.02)
                if self.mode == "expired":
                    break
                await response.write(line)
            return response

    def _is_held(self, path: str) -> bool:
        return self.mode == "held" and self.held_plural in path.rpartition("/")[2]


class WatchShuffler:
    """Delivers every event late, with earlier events, in random order."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._random = random.Random(7)

    async def intercept(self, request: web.Request) -> web.StreamResponse | None:
        if "watch" not in request.query:
            return None
        async with _open_watch(self._target, request) as lines:
            response, sent_lines = await _start_stream(request), list[bytes]()
            async for line in lines:
                sent_lines.append(line)
                burst = [line, *self._random.sample(sent_lines, min(4, len(sent_lines)))]
                self._random.shuffle(burst)
                with suppress(ConnectionResetError):  # the operator has ended
                    for burst_line in burst:
                        await asyncio.sleep(self._random.uniform(0, 0.1))
                        await response.write(burst_line)
            return response
