"""Requests to the API server: renewed logins, errors, and the server's clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from finetune_operator.kube import transport
from finetune_operator.kube.client import PODS, KubeClient, NotLeaderError
from finetune_operator.kube.login import LoginError
from finetune_operator.kube.transport import CONNECTION_ERRORS, ApiError, Transport

PATH = "/api/v1/namespaces/team/pods"


class NumberedLogin:
    """Each login returns another token. Its number is that of the login."""

    def __init__(self) -> None:
        self.host = ""
        self.count = 0
        self.seconds = 0.0
        self.error: LoginError | None = None

    async def log_in(self) -> Configuration:
        self.count += 1
        await asyncio.sleep(self.seconds)
        if self.error:
            raise self.error
        return Configuration(self.host, api_key={"BearerToken": f"Bearer {self.count}"})


@asynccontextmanager
async def _open_transport(
    answer: Callable[[], web.Response], login: NumberedLogin | None = None, timeout: float = 5
) -> AsyncIterator[tuple[Transport, list[web.Request]]]:
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
    login = login or NumberedLogin()
    login.host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    client = Transport(timeout)
    await client.open(login.log_in)
    try:
        yield client, requests
    finally:
        await client.close()
        await runner.cleanup()


class ExpiringTokens:
    """A server that accepts only the token with this number or a higher one."""

    def __init__(self) -> None:
        self.valid_from = 1
        self.requests: list[web.Request] = []

    def answer(self) -> web.Response:
        number = int(self.requests[-1].headers["Authorization"].removeprefix("Bearer "))
        return web.json_response({}, status=200 if number >= self.valid_from else 401)


@asynccontextmanager
async def _open_transport_with_expiring_tokens(
    monkeypatch: pytest.MonkeyPatch, timeout: float = 5
) -> AsyncIterator[tuple[Transport, ExpiringTokens, NumberedLogin]]:
    monkeypatch.setattr(transport, "_MIN_LOGIN_INTERVAL", 0.0)
    tokens, login = ExpiringTokens(), NumberedLogin()
    async with _open_transport(tokens.answer, login, timeout) as (client, requests):
        tokens.requests = requests
        yield client, tokens, login


async def test_transport_rejected_token_is_renewed_and_request_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _open_transport_with_expiring_tokens(monkeypatch) as (client, tokens, _):
        await client.call("GET", PATH)
        tokens.valid_from = 2
        await client.call("POST", PATH, body={"a": 1})
        await client.call("GET", PATH)
    sent = [(request.method, request.headers["Authorization"]) for request in tokens.requests]
    assert sent == [("GET", "Bearer 1"), ("POST", "Bearer 1"), ("POST", "Bearer 2"), ("GET", "Bearer 2")]


async def test_transport_many_rejected_requests_log_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _open_transport_with_expiring_tokens(monkeypatch) as (client, tokens, login):
        tokens.valid_from = 2
        results = await asyncio.gather(*(client.call("GET", PATH) for _ in range(20)))
    assert login.count == 2
    assert results == [{}] * 20


async def test_transport_rejected_user_is_not_logged_in_again_and_again() -> None:
    login = NumberedLogin()
    async with _open_transport(lambda: web.json_response({}, status=401), login) as (client, _):
        for _ in range(3):
            with pytest.raises(ApiError, match="401"):
                await client.call("GET", PATH)
    assert login.count == 1


async def test_transport_failed_login_is_a_connection_error_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _open_transport_with_expiring_tokens(monkeypatch) as (client, tokens, login):
        tokens.valid_from = 2
        login.error = LoginError("the plug-in failed")
        with pytest.raises(CONNECTION_ERRORS, match="the plug-in failed"):
            await client.call("GET", PATH)
        login.error = None
        assert await client.call("GET", PATH) == {}


async def test_transport_hanging_login_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exec plug-in that waits for input must not be started for each request."""
    async with _open_transport_with_expiring_tokens(monkeypatch, timeout=1.0) as (client, tokens, login):
        tokens.valid_from = 2
        login.seconds = 600
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await client.call("GET", PATH)
    assert login.count == 2


async def test_transport_hanging_first_login_runs_once() -> None:
    login, client = NumberedLogin(), Transport(0.05)
    login.seconds = 600
    for _ in range(2):
        with pytest.raises(LoginError, match=r"no login within 0.05 s: does the exec plug-in wait for input\?"):
            await client.open(login.log_in)
    assert login.count == 1


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


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7), ("9" * 400, 300), ("²", 0), ("Fri, 27 Nov 2020 06:00:00 GMT", 0)]
)
async def test_transport_retry_after_header_is_read(header: str, seconds: float) -> None:
    answer: dict[str, Any] = {"status": 429, "headers": {"Retry-After": header}}
    async with _open_transport(lambda: web.json_response({}, **answer)) as (client, _):
        with pytest.raises(ApiError) as error:
            await client.call("GET", PATH)
    assert error.value.retry_after == seconds


async def test_transport_now_follows_date_header() -> None:
    """The clock follows the responses' Date headers. Missing and invalid ones are ignored."""
    dates = iter(
        ["Fri, 27 Nov 2020 06:00:00 GMT", "Fri, 27 Nov 2020 06:00:00 GMT", "soon", "Fri, 27 Nov 2020 07:00:00 GMT",
         "Fri, 27 Nov 2020 08:00:00 -0000"]
    )  # fmt: skip
    expected = [(6, 0), (6, 0), (6, 0), (7, 0), (8, 0)]
    async with _open_transport(lambda: web.json_response({}, headers={"Date": next(dates)})) as (client, _):
        for hour_and_minute in expected:
            await client.call("GET", PATH)
            now = client.now()
            assert (now.year, now.hour, now.minute, now.utcoffset()) == (2020, *hour_and_minute, timedelta())


PAGES = {"a page": "<html>log in</html>", "a text": '"log in"', "nothing": ""}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_transport_page_of_a_proxy_is_a_connection_error(page: str) -> None:
    """A page that is sent with 200 must not end the leader election, nor stop the lists of other namespaces."""
    async with _open_transport(lambda: web.Response(text=page)) as (client, _):
        with pytest.raises(CONNECTION_ERRORS, match="the response is not from the API server"):
            await client.call("GET", PATH)
        with pytest.raises(CONNECTION_ERRORS, match="the response is not from the API server"):
            await KubeClient(client, lambda: True).list_objects(PODS, "team")


async def test_client_leadership_lost_during_login_repeats_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with _open_transport_with_expiring_tokens(monkeypatch) as (client, tokens, login):
        tokens.valid_from = 2
        with pytest.raises(NotLeaderError):
            await KubeClient(client, lambda: login.count == 1).create_event({"metadata": {"namespace": "team"}})
    assert [request.method for request in tokens.requests] == ["POST"]
