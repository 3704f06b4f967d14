"""Responses of pods are untrusted: slow, large, redirected or invalid ones are ignored."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from yarl import URL

from finetune_operator.controller.finetunejob import progress_poller
from finetune_trainer.contract import Progress

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders
    from tests.support.operator.fault_proxy import FakeTrainer

GOOD = {"stage": "Training", "percentage": 40, "step": 4, "totalSteps": 10, "loss": 1.25, "lastUpdateTime": "t"}


async def _fetch(trainer: FakeTrainer, path: str = "/progress") -> Progress | None:
    async with progress_poller.create_session() as client:
        return await progress_poller.fetch_progress(client, URL(f"http://127.0.0.1:{trainer.port}{path}"))


async def test_fetch_valid_progress_is_parsed(trainer: FakeTrainer) -> None:
    trainer.answer = {**GOOD, "inventedByANewerTrainer": 1}
    progress_read = await _fetch(trainer)
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
    "too big": json.dumps({**GOOD, "padding": "x" * progress_poller.MAX_RESPONSE_BYTES}).encode(),
}  # fmt: skip


@pytest.mark.parametrize("body", GARBAGE.values(), ids=GARBAGE.keys())
async def test_fetch_invalid_body_returns_none(trainer: FakeTrainer, body: bytes) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    trainer.handler = handle
    assert await _fetch(trainer) is None


async def test_fetch_redirect_is_not_followed(trainer: FakeTrainer) -> None:
    paths = []

    async def handle(request: web.Request) -> web.Response:
        paths.append(request.path)
        if request.path == "/elsewhere":
            return web.json_response(GOOD)
        raise web.HTTPFound("/elsewhere")

    trainer.handler = handle
    assert await _fetch(trainer) is None
    assert paths == ["/progress"]


async def test_fetch_error_status_returns_none(trainer: FakeTrainer) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.json_response(GOOD, status=500)

    trainer.handler = handle
    assert await _fetch(trainer) is None


async def test_fetch_endless_body_returns_none(trainer: FakeTrainer) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)

    trainer.handler = handle
    assert await _fetch(trainer) is None


@pytest.mark.parametrize("headers_first", [False, True])
async def test_fetch_slow_answer_times_out(
    trainer: FakeTrainer, monkeypatch: pytest.MonkeyPatch, headers_first: bool
) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if headers_first:
            await response.prepare(request)
        await asyncio.sleep(30)
        return response

    monkeypatch.setattr(progress_poller, "REQUEST_TIMEOUT", 0.3)
    trainer.handler = handle
    start = time.monotonic()
    assert await _fetch(trainer) is None
    assert time.monotonic() - start < 3


async def test_fetch_connection_refused_returns_none(trainer: FakeTrainer) -> None:
    async with progress_poller.create_session() as client:
        assert await progress_poller.fetch_progress(client, URL("http://127.0.0.1:1/progress")) is None


@pytest.mark.parametrize(
    ("pod", "url"),
    [
        ({"podIP": "10.0.0.7"}, "http://10.0.0.7:8080/progress"),
        ({"podIP": "fd00::7"}, "http://[fd00::7]:8080/progress"),
        ({}, None),
    ],
)
def test_address_is_built_from_pod_ip(build: type[Builders], pod: dict[str, Any], url: str | None) -> None:
    address = progress_poller.build_progress_url(build.pod(**pod))
    assert (str(address) if address else None) == url


def test_address_pod_on_host_network_is_none(build: type[Builders]) -> None:
    pod = build.pod(podIP="10.0.0.7")
    pod["spec"]["hostNetwork"] = True
    assert progress_poller.build_progress_url(pod) is None


def test_differs_ignores_last_update_time() -> None:
    old = Progress.model_validate(GOOD)
    assert progress_poller.has_changed(old, None)
    assert not progress_poller.has_changed(old.model_copy(update={"last_update_time": "later"}), old)
    assert progress_poller.has_changed(old.model_copy(update={"step": 5}), old)
