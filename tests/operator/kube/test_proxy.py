"""The proxy that the environment names, by the rules of client-go."""

from __future__ import annotations

import pytest

from finetune_operator.kube.proxy import find_proxy

PROXY = "http://proxy:3128"
CASES = {
    "no variable": ({}, "https://10.96.0.1:443", None),
    "for HTTPS": ({"HTTPS_PROXY": PROXY}, "https://10.96.0.1:443", PROXY),
    "lower case": ({"https_proxy": PROXY}, "https://api.example.com", PROXY),
    "for HTTP only": ({"HTTP_PROXY": PROXY}, "https://api.example.com", None),
    "without a scheme": ({"HTTPS_PROXY": "proxy:3128"}, "https://api.example.com", PROXY),
    "excluded name": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a,example.com"}, "https://api.example.com:6443", None),
    "other name": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "a,example.com"}, "https://example.org", PROXY),
    "excluded network": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "svc, 10.96.0.0/12"}, "https://10.96.0.1:443", None),
    "excluded IPv6 network": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "fd00::/8"}, "https://[fd00::1]:443", None),
    "excluded address": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.96.0.1"}, "https://10.96.0.1:443", None),
    "other network": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/16"}, "https://10.96.0.1:443", PROXY),
    "everything excluded": ({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, "https://10.96.0.1:443", None),
    "localhost": ({"HTTPS_PROXY": PROXY}, "https://localhost:6443", None),
    "loopback": ({"HTTPS_PROXY": PROXY}, "https://[::1]:6443", None),
}


@pytest.mark.parametrize(("environment", "server", "proxy"), CASES.values(), ids=CASES)
def test_find_proxy_follows_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], server: str, proxy: str | None
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_proxy(server) == proxy
