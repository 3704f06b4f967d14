"""Names of Services, for pods: enough of DNS that `kubernetes.default.svc` and other ClusterIPs are found.

Run as `python -m local_cluster.dns NAME` by the supervisor. A headless Service has no address here.
"""

import json
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address

from local_cluster import node
from local_cluster.node import Node

PORT = 53
DOMAIN = "svc.cluster.local"
_HEADER = 12
_A, _INTERNET = 1, 1
_ANSWERED, _NO_SUCH_NAME = 0x8580, 0x8583  # a response, authoritative, recursion asked for and available
_SECONDS = 5
Lookup = Callable[[str, str], str | None]


def respond(query: bytes, lookup: Lookup) -> bytes:
    """The answer to a query of one question; `lookup` knows a Service's address by namespace and name."""
    labels, end = _question(query)
    address = _address(labels, lookup)
    kind = int.from_bytes(query[end : end + 2], "big")
    wanted = address is not None and kind == _A
    flags = _NO_SUCH_NAME if address is None else _ANSWERED
    counts = (1, int(wanted), 0, 0)
    header = query[:2] + flags.to_bytes(2, "big") + b"".join(count.to_bytes(2, "big") for count in counts)
    return header + query[_HEADER : end + 4] + (_record(address) if address and wanted else b"")


def _question(query: bytes) -> tuple[list[str], int]:
    """The labels of the name that is asked for, and where the name ends."""
    labels = []
    at = _HEADER
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode("ascii", "replace").lower())
        at += 1 + length
    return labels, at + 1


def _address(labels: list[str], lookup: Lookup) -> str | None:
    if len(labels) != 5 or ".".join(labels[2:]) != DOMAIN:
        return None
    return lookup(labels[1], labels[0])


def _record(address: str) -> bytes:
    """It points back to the question for its name."""
    name = (0xC000 | _HEADER).to_bytes(2, "big")
    fields = [(_A, 2), (_INTERNET, 2), (_SECONDS, 4), (4, 2)]
    return name + b"".join(value.to_bytes(size, "big") for value, size in fields) + IPv4Address(address).packed


def service_lookup(target: Node) -> Lookup:
    """Asks the API server each time: what it says is never stale."""
    token = json.loads(target.kubeconfig("admin").read_text())["users"][0]["user"]["token"]
    trust = ssl.create_default_context(cafile=str(target.pki("ca.crt")))

    def lookup(namespace: str, name: str) -> str | None:
        url = f"{target.addresses.api}/api/v1/namespaces/{namespace}/services/{name}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, context=trust, timeout=_SECONDS) as response:
                return str(IPv4Address(json.load(response)["spec"]["clusterIP"]))
        except (urllib.error.URLError, AddressValueError, KeyError):
            return None

    return lookup


def main() -> None:
    target = node.of(sys.argv[1])
    lookup = service_lookup(target)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((target.addresses.node, PORT))
        while True:
            query, client = server.recvfrom(4096)
            try:
                server.sendto(respond(query, lookup), client)
            except (IndexError, OSError) as error:
                print(f"a query of {client[0]} is dropped: {error}", flush=True)


if __name__ == "__main__":
    main()
