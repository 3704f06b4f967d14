"""Requests to the API server: token renewal, errors, and the server's clock."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from finetune_operator.kube import transport
from finetune_operator.kube.transport import ApiError, Transport


class RotatingTokenLogin:
    """A service account whose token is rotated."""

    def __init__(self, server: str) -> None:
        self.server = server
        self._tokens: Iterator[str] = iter(["first", "second", "third"])

    def as_http_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {next(self._tokens)}"}

    def as_ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context()


@asynccontextmanager
async def _open_transport(answer: Callable[[], web.Response]) -> AsyncIterator[tuple[Transport, list[web.Request]]]:
    requests: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        requests.append(request)
        return answer()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    access = RotatingTokenLogin(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    client = Transport(5)
    client.open(lambda: access)
    try:
        yield client, requests
    finally:
        await client.close()
        await runner.cleanup()


PATH = "/api/v1/namespaces/team/pods"


async def test_transport_token_expired_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _open_transport(lambda: web.json_response({"items": []})) as (client, requests):
        for seconds in (60.0, 60.0, 0.0):
            monkeypatch.setattr(transport, "_TOKEN_REFRESH_SECONDS", seconds)
            await client.call("GET", PATH)
    tokens = [request.headers["Authorization"] for request in requests]
    assert tokens == ["Bearer first", "Bearer first", "Bearer second"]


async def test_transport_empty_query_value_is_not_sent() -> None:
    async with _open_transport(lambda: web.json_response({})) as (client, requests):
        await client.call("GET", PATH, query={"labelSelector": "a=b,c", "continue": ""})
    assert dict(requests[0].query) == {"labelSelector": "a=b,c"}


REFUSALS = {
    "a Status": (
        lambda: web.json_response({"reason": "Conflict", "message": "changed"}, status=409),
        "409 Conflict: changed",
    ),
    "a proxy's page": (lambda: web.Response(text="<html>busy</html>", status=503), "503 Unknown: <html>busy</html>"),
    "nothing": (lambda: web.Response(status=500), "500 Unknown: "),
    "a list": (lambda: web.json_response([1], status=400), "400 Unknown: [1]"),
    "no UTF-8": (lambda: web.Response(body=b"\xff\xfe", status=502), "502 Unknown: \ufffd\ufffd"),
}


@pytest.mark.parametrize(("answer", "message"), REFUSALS.values(), ids=REFUSALS)
async def test_transport_error_answer_raises_with_message(answer: Callable[[], web.Response], message: str) -> None:
    async with _open_transport(answer) as (client, _):
        with pytest.raises(ApiError) as error:
            await client.call("GET", PATH)
    assert str(error.value) == message


async def test_transport_retry_after_header_is_read() -> None:
    async with _open_transport(lambda: web.json_response({}, status=429, headers={"Retry-After": "7"})) as (client, _):
        with pytest.raises(ApiError) as error:
            await client.call("GET", PATH)
    assert error.value.retry_after == 7


async def test_transport_now_follows_date_header() -> None:
    """The clock follows the responses' Date headers. Missing and invalid ones are ignored."""
    dates = iter(
        ["Fri, 27 Nov 2020 06:00:00 GMT", "Fri, 27 Nov 2020 06:00:00 GMT", "soon", "Fri, 27 Nov 2020 07:00:00 GMT"]
    )
    expected = [(6, 0), (6, 0), (6, 0), (7, 0)]
    async with _open_transport(lambda: web.json_response({}, headers={"Date": next(dates)})) as (client, _):
        for hour_and_minute in expected:
            await client.call("GET", PATH)
            now = client.now()
            assert (now.year, now.hour, now.minute) == (2020, *hour_and_minute)
