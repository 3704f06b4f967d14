"""Asking a running trainer how far it is. What it answers is a stranger's word: bounded, checked, and never needed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import aiohttp
from pydantic import ValidationError
from yarl import URL

from finetune_trainer.contract import PROGRESS_PORT, Progress

TIMEOUT = 2.0
"""Seconds that a pod has for its answer."""
MAX_BYTES = 64 * 1024
CONNECTIONS = 512
"""At a time, of all namespaces."""
SHARE = 64
"""At a time, of one namespace."""
ROUND = 3 * TIMEOUT
"""Seconds after which those that were not asked yet are left for another time."""


class Round:
    """A question to each of many pods.

    A namespace full of silent ones holds up itself: it has no more than its share of the connections at a time, and a
    pod's time begins when it has one.
    """

    def __init__(self, client: aiohttp.ClientSession) -> None:
        self._client = client
        self._all = asyncio.Semaphore(CONNECTIONS)
        self._own: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(SHARE))

    async def ask(self, namespace: str, url: URL) -> Progress | None:
        """What `fetch` says, in turn."""
        async with self._own[namespace], self._all:
            return await fetch(self._client, url)


def session() -> aiohttp.ClientSession:
    """Connections that carry nothing from one pod to another; as many as are asked for."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        auto_decompress=False,
    )


def address(pod: dict[str, Any]) -> URL | None:
    """Where a pod answers, by the API server's word. A pod on its node's network has no address of its own."""
    host = pod.get("status", {}).get("podIP")
    if not host or pod.get("spec", {}).get("hostNetwork"):
        return None
    return URL.build(scheme="http", host=host, port=PROGRESS_PORT, path="/progress")


async def fetch(client: aiohttp.ClientSession, url: URL) -> Progress | None:
    """How far the trainer is; None if it does not say so in time, in short and in form."""
    try:
        async with client.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            text = await _read(response.content)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None
    try:
        return Progress.model_validate_json(text, extra="ignore")
    except ValidationError:
        return None


async def _read(content: aiohttp.StreamReader) -> bytes:
    text = bytearray()
    async for chunk in content.iter_chunked(8192):
        text += chunk
        if len(text) > MAX_BYTES:
            return b""
    return bytes(text)


def differs(new: Progress, old: Progress | None) -> bool:
    """Whether it says more than another time."""
    if old is None:
        return True
    return new.model_dump(exclude={"last_update_time"}) != old.model_dump(exclude={"last_update_time"})
