"""Check of endpoints: requests must not go to metadata services of clouds or to other link-local addresses."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_FORBIDDEN_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local; metadata services of clouds return credentials of the node here
        "fe80::/10",
        "64:ff9b::a9fe:0/112",  # the same through NAT64
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "100.100.100.200/32",  # Alibaba
        "168.63.129.16/32",  # Azure
    )
]


def check_endpoint(url: str) -> None:
    """Raise `CONFIG_INVALID` if the endpoint is, or resolves to, a metadata service or another link-local address."""
    parsed_url = urlsplit(url)
    try:
        # getaddrinfo parses 0xa9fea9fe, 2852039166 and 0251.0376.1 as the clients do that connect.
        address_infos = socket.getaddrinfo(parsed_url.hostname, parsed_url.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # unknown name: the connection will fail, or a proxy resolves it
        return
    for _, _, _, _, socket_address in address_infos:
        resolved_ip = ipaddress.ip_address(str(socket_address[0]).partition("%")[0])
        if isinstance(resolved_ip, ipaddress.IPv6Address):
            resolved_ip = resolved_ip.ipv4_mapped or resolved_ip
        if any(resolved_ip in network for network in _FORBIDDEN_NETWORKS):
            message = (
                f"storage.endpoint: {url} resolves to a cloud metadata address or link-local address ({resolved_ip}), "
                "which is not allowed as an S3 endpoint"
            )
            raise TrainerError(Reason.CONFIG_INVALID, message)
