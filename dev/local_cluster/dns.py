"""Names of Services, for pods: enough of DNS that `kubernetes.default.svc` and other ClusterIPs are found.

Run as `python -m local_cluster.dns NAME` by the supervisor. A headless Service has no address here, but its pods have
that have a host name: `pod.service.namespace.svc`.
"""

import json
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from local_cluster import node
from local_cluster.node import Node

PORT = 53
DOMAIN = "svc.cluster.local"
_HEADER = 12
_A, _INTERNET = 1, 1
_ANSWERED, _NO_SUCH_NAME = 0x8580, 0x8583  # a response, authoritative, recursion asked for and available
_SECONDS = 5
_OF_SERVICE = "labelSelector=kubernetes.io/service-name%3D"
Lookup = Callable[[str, str, str], str | None]


def respond(query: bytes, lookup: Lookup) -> bytes:
    """The answer to a query of one question; `lookup` knows a Service's address by namespace, name and a pod's
    host name, which is empty for the Service itself."""
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
    if len(labels) not in (5, 6) or ".".join(labels[-3:]) != DOMAIN:
        return None
    *host, name, namespace = labels[:-3]
    return lookup(namespace, name, "".join(host))


def _record(address: str) -> bytes:
    """It points back to the question for its name."""
    name = (0xC000 | _HEADER).to_bytes(2, "big")
    fields = [(_A, 2), (_INTERNET, 2), (_SECONDS, 4), (4, 2)]
    return name + b"".join(value.to_bytes(size, "big") for value, size in fields) + IPv4Address(address).packed


def service_lookup(target: Node) -> Lookup:
    """Asks the API server each time: what it says is never stale."""
    token = json.loads(target.kubeconfig("admin").read_text())["users"][0]["user"]["token"]
    trust = ssl.create_default_context(cafile=str(target.pki("ca.crt")))

    def get(path: str) -> dict[str, Any]:
        request = urllib.request.Request(target.addresses.api + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, context=trust, timeout=_SECONDS) as response:
            return dict(json.load(response))

    def lookup(namespace: str, name: str, host: str) -> str | None:
        try:
            if host:
                slices = get(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{_OF_SERVICE}{name}")
                return pod_address(slices["items"], host)
            return str(IPv4Address(get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]))
        except (urllib.error.URLError, AddressValueError, KeyError):
            return None

    return lookup


def pod_address(slices: list[dict[str, Any]], host: str) -> str | None:
    """The pod of that host name, by a Service's EndpointSlices."""
    endpoints = (each for one in slices for each in one["endpoints"] or [] if each.get("hostname") == host)
    return next((str(IPv4Address(address)) for each in endpoints for address in each["addresses"]), None)


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
