"""What stands between the operator and its watches."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

import aiohttp
from aiohttp import web
from tests.operator import api_server as api


@asynccontextmanager
async def _asked(target: str, request: web.Request) -> AsyncIterator[aiohttp.StreamReader]:
    """What the API server answers; runs in the proxy's thread."""
    limit = aiohttp.ClientTimeout(total=None)
    async with (
        api.session(api.OPERATOR_TOKEN) as session,
        session.get(target + request.path_qs, timeout=limit) as answer,
    ):
        yield answer.content


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    return response


class Watches:
    """Passes watches on, holds back what they say (those of before, or all), or ends them as expired."""

    def __init__(self, target: str) -> None:
        self._target = target
        self.held_kind = ""
        """The plural of the one kind whose watches are held; empty for all."""
        self.mode: Literal["open", "held", "old ones held", "expired"] = "open"

    async def trouble(self, request: web.Request) -> web.StreamResponse | None:
        if "watch" not in request.query:
            return None
        if self.mode == "expired":
            return web.json_response({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}})
        async with _asked(self._target, request) as lines:
            response, mode = await _begun(request), self.mode
            async for line in lines:
                while self._is_held(request.path) or (self.mode == "old ones held" != mode):
                    await asyncio.sleep(0.02)
                if self.mode == "expired":
                    break
                await response.write(line)
            return response

    def _is_held(self, path: str) -> bool:
        return self.mode == "held" and self.held_kind in path.rpartition("/")[2]


class Disordered:
    """Tells every event late, together with events of before, in any order."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._chance = random.Random(7)

    async def trouble(self, request: web.Request) -> web.StreamResponse | None:
        if "watch" not in request.query:
            return None
        async with _asked(self._target, request) as lines:
            response, told = await _begun(request), list[bytes]()
            async for line in lines:
                told.append(line)
                again = [line, *self._chance.sample(told, min(4, len(told)))]
                self._chance.shuffle(again)
                with suppress(ConnectionResetError):  # the operator has ended
                    for each in again:
                        await asyncio.sleep(self._chance.uniform(0, 0.1))
                        await response.write(each)
            return response
