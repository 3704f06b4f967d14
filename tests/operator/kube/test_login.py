"""The login to the API server: service accounts, kubeconfigs, exec plug-ins, certificates and proxies."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import kopf
import pytest
from aiohttp import web
from kubernetes.aio.config import incluster_config
from tests.support.operator.tls import create_certificate

from finetune_operator.kopf_settings import WatchLogin
from finetune_operator.kube import transport
from finetune_operator.kube.login import LoginError, load_configuration
from finetune_operator.kube.transport import CONNECTION_ERRORS, Transport

PATH = "/api/v1/namespaces/team/pods"


class FakeApiServer:
    """Accepts one token, over HTTPS."""

    def __init__(self) -> None:
        self.token = "first"
        self.port = 0
        self.rejected: list[str] = []

    async def handle(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").partition(" ")[2]
        if token != self.token:
            self.rejected.append(token)
        return web.json_response({"items": []}, status=200 if token == self.token else 401)


@asynccontextmanager
async def _serve(context: ssl.SSLContext) -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    server.port = runner.addresses[0][1]
    try:
        yield server
    finally:
        await runner.cleanup()


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeApiServer]:
    """Return a server with a certificate for 127.0.0.1, without a proxy before it."""
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport, "_MIN_LOGIN_INTERVAL", 0.0)
    async with _serve(create_certificate(tmp_path)) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the kubeconfig, to which KUBECONFIG points."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path


def _write_kubeconfig(folder: Path, server: str, user: dict[str, Any], **cluster: Any) -> None:
    cluster = {"server": server, "certificate-authority": "ca.crt", **cluster}
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": user}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))


def _build_exec_user(folder: Path, script: str) -> dict[str, Any]:
    (folder / "plugin").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "plugin").chmod(0o755)
    return {"exec": {"apiVersion": EXEC_API, "command": str(folder / "plugin")}}


EXEC_API = "client.authentication.k8s.io/v1"
CREDENTIAL = json.dumps({"apiVersion": EXEC_API, "kind": "ExecCredential", "status": {"token": "%s"}})


@asynccontextmanager
async def _open_transport() -> AsyncIterator[Transport]:
    client = Transport(5)
    await client.open()
    try:
        yield client
    finally:
        await client.close()


async def _list_pods() -> None:
    async with _open_transport() as client:
        await client.call("GET", PATH)


async def test_login_exec_plugin_is_called_again_when_token_expires(server: FakeApiServer, folder: Path) -> None:
    user = _build_exec_user(folder, f"""printf '{CREDENTIAL}' "$(cat {folder}/token)"; echo >> {folder}/calls""")
    (folder / "token").write_text("first")
    _write_kubeconfig(folder, f"https://127.0.0.1:{server.port}", user)
    async with _open_transport() as client:
        for token in ("first", "first", "second"):
            server.token = token
            (folder / "token").write_text(token)
            await client.call("GET", PATH)
        assert (folder / "calls").read_text() == "\n\n"
        assert (await WatchLogin().log_in()).token == "second"
    assert server.rejected == ["first"]


async def test_login_exec_plugin_failure_is_a_login_error(server: FakeApiServer, folder: Path) -> None:
    _write_kubeconfig(
        folder, f"https://127.0.0.1:{server.port}", _build_exec_user(folder, "echo no network >&2; exit 1")
    )
    with pytest.raises(LoginError, match="exec plug-in failed"):
        await _list_pods()
    with pytest.raises(kopf.TemporaryError, match="exec plug-in failed"):
        await WatchLogin().log_in()


async def test_login_rotated_token_file_is_read(server: FakeApiServer, folder: Path) -> None:
    _write_kubeconfig(folder, f"https://127.0.0.1:{server.port}", {"tokenFile": "token"})
    (folder / "token").write_text("first\n")
    async with _open_transport() as client:
        await client.call("GET", PATH)
        server.token = "second"
        (folder / "token").write_text("second\n")
        await client.call("GET", PATH)
    assert (await WatchLogin().log_in()).token == "second"


@pytest.fixture
def service_account(server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a pod. Return the file of the token."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    (tmp_path / "token").write_text("first")
    return tmp_path / "token"


async def test_login_service_account_token_is_read_again(server: FakeApiServer, service_account: Path) -> None:
    async with _open_transport() as client:
        await client.call("GET", PATH)
        server.token = "second"
        service_account.write_text("second")
        await client.call("GET", PATH)
    connection = await WatchLogin().log_in()
    assert (connection.server, connection.token) == (f"https://127.0.0.1:{server.port}", "second")


async def test_login_missing_service_account_token_is_a_connection_error(
    service_account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with _open_transport() as client:
        service_account.unlink()
        monkeypatch.setattr("kubernetes.aio.config.incluster_config.datetime.datetime", _FutureDatetime)
        with pytest.raises(CONNECTION_ERRORS, match=r"cannot read the token of the service account: .*token"):
            await client.call("GET", PATH)


class _FutureDatetime(datetime.datetime):
    """A clock that is an hour ahead, when the token in memory has to be read again."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _FutureDatetime:
        return super().now(tz) + datetime.timedelta(hours=1)


@pytest.mark.parametrize(
    ("valid_days", "host", "message"),
    [
        (-1, "127.0.0.1", "the certificate of https://127.0.0.1:{port} is not valid: certificate has expired"),
        (1, "localhost", "the certificate of https://localhost:{port} is not valid: Hostname mismatch"),
    ],
)
async def test_login_invalid_certificate_is_named_in_one_line(
    folder: Path, valid_days: int, host: str, message: str
) -> None:
    async with _serve(create_certificate(folder, valid_days)) as server:
        _write_kubeconfig(folder, f"https://{host}:{server.port}", {"token": "first"})
        with pytest.raises(CONNECTION_ERRORS) as error:
            await _list_pods()
    assert str(error.value).startswith(message.format(port=server.port))
    assert "\n" not in str(error.value)


async def test_login_unknown_authority_is_named_in_one_line(server: FakeApiServer, folder: Path) -> None:
    (folder / "other").mkdir()
    create_certificate(folder / "other")
    _write_kubeconfig(
        folder, f"https://127.0.0.1:{server.port}", {"token": "x"}, **{"certificate-authority": "other/ca.crt"}
    )
    with pytest.raises(CONNECTION_ERRORS, match=r"is not valid: self-signed certificate; check .* authority$"):
        await _list_pods()


class ConnectProxy:
    """An HTTP proxy that knows the address of one host name."""

    def __init__(self, target_port: int) -> None:
        self.heads: list[str] = []
        self._target_port = target_port

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(_copy(reader, target_writer), _copy(target_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65536):
        writer.write(chunk)
    writer.close()


@pytest.mark.parametrize("is_from_kubeconfig", [False, True], ids=["HTTPS_PROXY", "proxy-url"])
async def test_login_proxy_is_used(
    server: FakeApiServer, folder: Path, monkeypatch: pytest.MonkeyPatch, is_from_kubeconfig: bool
) -> None:
    proxy = ConnectProxy(server.port)
    async with await asyncio.start_server(proxy.handle, "127.0.0.1", 0) as proxy_server:
        url = f"http://user:secret@127.0.0.1:{proxy_server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1" if is_from_kubeconfig else url)
        extra = {"proxy-url": url} if is_from_kubeconfig else {}
        _write_kubeconfig(folder, "https://kubernetes.test:6443", {"token": "first"}, **extra)
        await _list_pods()
    assert proxy.heads[0].startswith("CONNECT kubernetes.test:6443 ")
    assert "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in proxy.heads[0]
    assert (await WatchLogin().log_in()).proxy_url == url


INVALID = {
    "no file": (None, "found neither a service account .* nor a kubeconfig at .*kubeconfig; set KUBECONFIG"),
    "no YAML": ("a: [", "cannot log in to the API server: "),
    "empty": ("", "cannot log in to the API server: "),
    "no credentials": ({}, "has no credentials for https://kubernetes.test"),
    "missing token file": ({"tokenFile": "missing"}, "cannot log in to the API server: .*missing"),
    "incomplete OIDC user": (
        {"auth-provider": {"name": "oidc", "config": {"refresh-token": "secret"}}},
        "cannot log in to the API server: ConfigException: .* Expected key client-id in ",
    ),
    "server name": ({"token": "x", "cluster": {"tls-server-name": "a"}}, "tls-server-name is not supported"),
    "SOCKS proxy": ({"token": "x", "cluster": {"proxy-url": "socks5://a:secret@b"}}, "only HTTP proxies are supported"),
}


@pytest.mark.parametrize(("content", "message"), INVALID.values(), ids=INVALID)
async def test_login_unusable_kubeconfig_says_why(
    folder: Path, content: dict[str, Any] | str | None, message: str
) -> None:
    create_certificate(folder)
    if isinstance(content, str):
        (folder / "kubeconfig").write_text(content)
    elif content is not None:
        _write_kubeconfig(folder, "https://kubernetes.test", content, **content.pop("cluster", {}))
    with pytest.raises(LoginError, match=message) as error:
        await load_configuration()
    assert "secret" not in str(error.value)


async def test_login_unreadable_certificate_says_why(folder: Path) -> None:
    (folder / "ca.crt").write_text("no certificate")
    _write_kubeconfig(folder, "https://kubernetes.test", {"token": "x"})
    with pytest.raises(LoginError, match=r"cannot read the certificates for https://kubernetes.test: "):
        await Transport(5).open()
