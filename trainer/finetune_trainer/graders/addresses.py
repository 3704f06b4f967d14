"""Which addresses graders may call: not those of the metadata services of clouds, which give out credentials."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA_ADDRESSES = {ipaddress.ip_address(text) for text in ("100.100.100.200", "fd00:ec2::254", "168.63.129.16")}
"""Metadata services of Alibaba Cloud, AWS and Azure that are not link-local."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedAddressError(OSError):
    """The address must not be called."""


async def resolve_address(host: str, port: int) -> str:
    """Return the first address of a host. Raises `RefusedAddressError` if any of its addresses must not be called, and
    `OSError` if there is none.

    The caller connects to the returned address, so that the name cannot be resolved to another one in between.
    """
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]) for info in infos]
    for address in addresses:
        if is_refused(ipaddress.ip_address(address.partition("%")[0])):
            raise RefusedAddressError(
                f"{address} is a link-local, multicast or metadata address, which is never called"
            )
    return addresses[0]


def is_refused(address: IPAddress) -> bool:
    """Return whether an address must not be called, also in the form of IPv4 in IPv6."""
    inner = _unwrap(address)
    return inner.is_link_local or inner.is_multicast or inner.is_unspecified or inner in _METADATA_ADDRESSES


def _unwrap(address: IPAddress) -> IPAddress:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
