"""The proxy between the operator and the API server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass


def find_proxy(server: str) -> str | None:
    """Return the URL of the proxy for a server's URL by `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or None.

    As in client-go, `NO_PROXY` may contain networks such as `10.0.0.0/8`, and local addresses need no proxy. Python and
    aiohttp only compare names, and aiohttp reads the variables and `~/.netrc` in a thread for each request:
    https://github.com/aio-libs/aiohttp/blob/v3.14.5/aiohttp/client.py#L813
    """
    url, proxies = urlsplit(server), getproxies_environment()
    proxy = proxies.get(url.scheme)
    no_proxy = proxies.get("no", "")
    if not proxy or proxy_bypass(url.netloc) or _is_local(url.hostname or "", no_proxy):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_local(host: str, no_proxy: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return address.is_loopback or any(address in network for network in _parse_networks(no_proxy))


def _parse_networks(no_proxy: str) -> Iterator[IPv4Network | IPv6Network]:
    for entry in no_proxy.split(","):
        with suppress(ValueError):  # a name
            yield ip_network(entry.strip(), strict=False)
