"""Who may read the pages. The server needs neither a cluster nor a store for this."""

from __future__ import annotations

from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest
from tests.support.operator.api_server import find_free_port
from tests.support.ui.ui_process import UiServer, run_ui, write_kubeconfig


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiServer]:
    """Return a server whose cluster does not respond."""
    kubeconfig = write_kubeconfig(tmp_path_factory.mktemp("ui"), f"https://127.0.0.1:{find_free_port()}", "unused")
    with run_ui(["--kubeconfig", kubeconfig]) as server:
        yield server


def send(server: UiServer, path: str = "/", method: str = "GET", **headers: str) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    response.text = response.read().decode()  # type: ignore[attr-defined]
    connection.close()
    return response


def test_access_without_token_is_refused(server: UiServer) -> None:
    for path in ("/", "/runs/a/b", "/static/ui.js", "/?token=wrong", "/?token=%ff", "/nothing"):
        assert send(server, path).status == 401, path
    assert send(server, Cookie=f"finetune-ui-{server.port}=wrong").status == 401
    assert send(server, Cookie='"; finetune-ui').status == 401


def test_access_with_token_sets_strict_cookie(server: UiServer) -> None:
    response = send(server, f"/?token={server.token}")
    cookie = response.headers["set-cookie"].lower()
    assert response.status == 200
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert send(server, Cookie=server.cookie).status == 200


def test_access_other_host_is_refused(server: UiServer) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1", f"127.0.0.1.evil.example:{server.port}"):
        assert send(server, Cookie=server.cookie, Host=host).status == 403, host
    assert send(server, Cookie=server.cookie, Host=f"localhost:{server.port}").status == 200


def test_access_other_site_is_refused(server: UiServer) -> None:
    for site in ("cross-site", "same-site"):
        assert send(server, Cookie=server.cookie, Sec_Fetch_Site=site).status == 403
    response = send(server, Cookie=server.cookie, Origin="https://evil.example")
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_access_other_method_is_refused(server: UiServer, method: str) -> None:
    response = send(server, "/", method, Cookie=server.cookie)
    assert response.status == 405
    assert response.headers["allow"] == "GET"


def test_access_policy_allows_own_files_only(server: UiServer) -> None:
    headers = send(server, Cookie=server.cookie).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_page_of_unreachable_cluster_says_so_in_one_line(server: UiServer) -> None:
    page = send(server, Cookie=server.cookie)
    assert "the API server" in page.text  # type: ignore[attr-defined]
    assert page.text.count('class="problem"') == 1  # type: ignore[attr-defined]
    assert "Traceback" not in page.text  # type: ignore[attr-defined]
    assert send(server, "/history", Cookie=server.cookie).status == 200
    assert send(server, "/runs/a/b", Cookie=server.cookie).status == 502


def test_server_port_in_use_is_one_line(server: UiServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), run_ui(["--port", str(server.port)]):
        pass  # it has printed no address
    assert capfd.readouterr().err == (
        f"error: cannot listen at 127.0.0.1:{server.port}: Address already in use; choose another --port\n"
    )
