"""Responses of pods are untrusted: slow, large, redirected, interim or invalid ones are ignored at a bounded cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from tests.support.operator.api_server import find_free_port
from tests.support.operator.hostile_pods import BEHAVIORS, VALID_PROGRESS, build_address, run_hostile_pods

from finetune_operator.controller.finetunejob import progress_poller, progress_reader
from finetune_operator.controller.finetunejob.progress_poller import ProgressFetcher
from finetune_operator.controller.finetunejob.progress_reader import ProgressReader
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.support.operator.fault_proxy import FakeTrainer

GOOD = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "loss": 1.25, "lastUpdateTime": "t"}


async def _read(trainer: FakeTrainer, timeout_seconds: float = 5) -> Progress | None:
    return await ProgressReader(trainer.port, timeout_seconds).read("127.0.0.1")


async def test_read_valid_progress_is_parsed(trainer: FakeTrainer) -> None:
    trainer.answer = {**GOOD, "inventedByANewerTrainer": 1}
    progress_read = await _read(trainer)
    assert progress_read
    assert progress_read.to_json() == GOOD


GARBAGE = {
    "not JSON": b"<html>", "a list": b"[]", "null": b"null", "nothing": b"", "deep": b"[" * 60_000,
    "unknown stage": json.dumps({**GOOD, "stage": "Hacking"}).encode(),
    "over 100": json.dumps({**GOOD, "percentage": 101}).encode(),
    "not a number": json.dumps({**GOOD, "loss": float("nan")}).encode(),
    "a huge number": json.dumps({**GOOD, "step": 10**400}).encode(),
    "half a character": b'{"stage": "Training", "lastUpdateTime": "\xff"}',
    "a long time": json.dumps({**GOOD, "lastUpdateTime": "t" * 65}).encode(),
    "too big": json.dumps({**GOOD, "padding": "x" * progress_reader.MAX_BODY_BYTES}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
async def test_read_invalid_body_returns_none(trainer: FakeTrainer, body: bytes) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    trainer.handler = handle
    assert await _read(trainer) is None


async def test_read_redirect_is_not_followed(trainer: FakeTrainer) -> None:
    paths = []

    async def handle(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path == "/elsewhere":
            return web.json_response(GOOD)
        raise web.HTTPFound("/elsewhere")

    trainer.handler = handle
    assert await _read(trainer) is None
    assert paths == ["/progress"]


async def test_read_error_status_returns_none(trainer: FakeTrainer) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(GOOD, status=500)

    trainer.handler = handle
    assert await _read(trainer) is None


async def test_read_endless_body_returns_none(trainer: FakeTrainer) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    trainer.handler = handle
    assert await _read(trainer) is None


@pytest.mark.parametrize("headers_first", [False, True])
async def test_read_slow_answer_times_out(trainer: FakeTrainer, headers_first: bool) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if headers_first:
            await response.prepare(request)
        await asyncio.sleep(30)
        return response

    trainer.handler = handle
    start = time.monotonic()
    assert await _read(trainer, timeout_seconds=0.3) is None
    assert time.monotonic() - start < 3


async def test_read_connection_refused_returns_none() -> None:
    assert await ProgressReader(1, 5).read("127.0.0.1") is None


async def test_read_address_that_is_no_ip_returns_none(trainer: FakeTrainer) -> None:
    trainer.answer = GOOD
    assert await ProgressReader(trainer.port, 5).read("localhost") is None


BODY = json.dumps(GOOD).encode()
OK = b"HTTP/1.0 200 OK\r\n"
RESPONSES = {
    "HTTP/1.0": (OK + b"\r\n" + BODY, True),
    "HTTP/1.1": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + BODY, True),
    "largest head": (OK + b"X: " + b"a" * (8192 - len(OK) - 7) + b"\r\n\r\n" + BODY, True),
    "head one byte larger": (OK + b"X: " + b"a" * (8192 - len(OK) - 6) + b"\r\n\r\n" + BODY, False),
    "largest body": (OK + b"\r\n" + BODY.ljust(65536), True),
    "body one byte larger": (OK + b"\r\n" + BODY.ljust(65537), False),
    "interim response": (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\n" + BODY, False),
    "other success": (b"HTTP/1.0 204 No Content\r\n\r\n" + BODY, False),
    "chunked": (OK + b"TRANSFER-Encoding: chunked\r\n\r\n" + BODY, False),
    "HTTP/2": (b"HTTP/2.0 200 OK\r\n\r\n" + BODY, False),
    "no status line": (BODY, False),
    "no end of headers": (OK + BODY, False),
    "only line feeds": (b"HTTP/1.0 200 OK\n\n" + BODY, False),
    "half a status line": (b"HTTP/1.0 2", False),
}


@asynccontextmanager
async def _serve_bytes(response: bytes) -> AsyncIterator[int]:
    """Answer every connection with these bytes, then close it. Yields the port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /progress HTTP/1.1\r\nHost: 127.0.0.1:")
        writer.write(response)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(("response", "is_valid"), RESPONSES.values(), ids=RESPONSES)
async def test_read_only_plain_response_within_limits_is_valid(response: bytes, is_valid: bool) -> None:
    async with _serve_bytes(response) as port:
        progress_read = await ProgressReader(port, 5).read("127.0.0.1")
    assert (progress_read is not None) == is_valid


MAX_STALL_SECONDS = 0.5
MAX_RSS_GROWTH_MIB = 64
HOSTILE_PODS = 256


async def _record_stalls(stalls: list[float]) -> None:
    """Record how long the event loop computes between two turns of this task.

    The CPU time of the thread is measured, because other processes of the machine would lengthen the elapsed time.
    """
    while True:
        started = time.thread_time()
        await asyncio.sleep(0.005)
        stalls.append(time.thread_time() - started)


def _read_peak_rss_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


@pytest.mark.parametrize("behaviors", [[*BEHAVIORS], ["endless early hints"]], ids=["all", "early hints"])
async def test_fetch_hostile_pods_do_not_stall_event_loop(
    monkeypatch: pytest.MonkeyPatch, behaviors: list[str]
) -> None:
    port, stalls = find_free_port(), list[float]()
    monkeypatch.setattr(progress_poller, "PROGRESS_PORT", port)
    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 4.0)  # one process serves all pods
    addresses = [build_address(behaviors[number % len(behaviors)], number) for number in range(HOSTILE_PODS)]
    with run_hostile_pods(port):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, see proc(5)
        rss_before, ticker = _read_peak_rss_mib(), asyncio.create_task(_record_stalls(stalls))
        fetcher = ProgressFetcher()
        results = await asyncio.gather(
            *(fetcher.fetch(f"team-{number // 64}", address) for number, address in enumerate(addresses))
        )
        ticker.cancel()
    assert max(stalls) < MAX_STALL_SECONDS
    assert _read_peak_rss_mib() - rss_before < MAX_RSS_GROWTH_MIB
    valid_addresses = {build_address("valid, in single bytes", number) for number in range(HOSTILE_PODS)}
    for address, progress_read in zip(addresses, results, strict=True):
        assert (progress_read and progress_read.to_json()) == (VALID_PROGRESS if address in valid_addresses else None)
