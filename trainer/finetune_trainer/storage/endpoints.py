"""Where requests may go: to stores, not to what answers on a node about the node itself."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_FORBIDDEN_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; clouds answer here with the node's own credentials
        "fe80::/10",
        "64:ff9b::a9fe:0/112",  # the same through NAT64
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
    )
]


def check_endpoint(url: str) -> None:
    """Refuse an endpoint that is, or is a name for, an address of a cloud's metadata or another link-local one."""
    parsed_url = urlsplit(url)
    try:
        # It reads 0xa9fea9fe, 2852039166 and 0251.0376.1 just as those who connect do.
        address_infos = socket.getaddrinfo(parsed_url.hostname, parsed_url.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # no such name here: whoever connects will say so, or a proxy knows it
        return
    for _, _, _, _, socket_address in address_infos:
        resolved_ip = ipaddress.ip_address(str(socket_address[0]).partition("%")[0])
        if isinstance(resolved_ip, ipaddress.IPv6Address):
            resolved_ip = resolved_ip.ipv4_mapped or resolved_ip
        if any(resolved_ip in network for network in _FORBIDDEN_NETWORKS):
            message = (
                f"storage.endpoint: {url} leads to {resolved_ip}, where nodes ask about themselves; it is no S3 store"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)
