"""Asking a running trainer how far it is. What it answers is a stranger's word: bounded, checked, and never needed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import aiohttp
from pydantic import ValidationError
from yarl import URL

from finetune_trainer.contract import PROGRESS_PORT, Progress

REQUEST_TIMEOUT = 2.0
"""Seconds that a pod has for its answer."""
MAX_RESPONSE_BYTES = 64 * 1024
MAX_CONNECTIONS = 512
"""At a time, of all namespaces."""
MAX_NAMESPACE_CONNECTIONS = 64
"""At a time, of one namespace."""
POLL_TIMEOUT = 3 * REQUEST_TIMEOUT
"""Seconds after which those that were not asked yet are left for another time."""


class ProgressPoller:
    """A question to each of many pods.

    A namespace full of silent ones holds up itself: it has no more than its share of the connections at a time, and a
    pod's time begins when it has one.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._semaphore = asyncio.Semaphore(MAX_CONNECTIONS)
        self._namespace_semaphores: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(MAX_NAMESPACE_CONNECTIONS)
        )

    async def poll(self, namespace: str, url: URL) -> Progress | None:
        """What `fetch` says, in turn."""
        async with self._namespace_semaphores[namespace], self._semaphore:
            return await fetch_progress(self._session, url)


def create_session() -> aiohttp.ClientSession:
    """Connections that carry nothing from one pod to another; as many as are asked for."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        auto_decompress=False,
    )


def build_progress_url(pod: dict[str, Any]) -> URL | None:
    """Where a pod answers, by the API server's word. A pod on its node's network has no address of its own."""
    host = pod.get("status", {}).get("podIP")
    if not host or pod.get("spec", {}).get("hostNetwork"):
        return None
    return URL.build(scheme="http", host=host, port=PROGRESS_PORT, path="/progress")


async def fetch_progress(session: aiohttp.ClientSession, url: URL) -> Progress | None:
    """How far the trainer is; None if it does not say so in time, in short and in form."""
    try:
        async with session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                return None
            content = await _read_limited(response.content)
    except (TimeoutError, aiohttp.ClientError, OSError):
        return None
    try:
        return Progress.model_validate_json(content, extra="ignore")
    except ValidationError:
        return None


async def _read_limited(stream: aiohttp.StreamReader) -> bytes:
    received = bytearray()
    async for chunk in stream.iter_chunked(8192):
        received += chunk
        if len(received) > MAX_RESPONSE_BYTES:
            return b""
    return bytes(received)


def has_changed(current: Progress, previous: Progress | None) -> bool:
    """Whether it says more than another time."""
    if previous is None:
        return True
    return current.model_dump(exclude={"last_update_time"}) != previous.model_dump(exclude={"last_update_time"})
