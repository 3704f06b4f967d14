"""DNS server for pods, which resolves the ClusterIPs of Services and the host names of pods in headless Services.

The supervisor runs it as `python -m local_cluster.dns NAME`. It answers `service.namespace.svc.cluster.local` and
`host.service.namespace.svc.cluster.local` over UDP; a headless Service itself has no address.
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
_HEADER_BYTES = 12
_TYPE_A, _CLASS_INTERNET = 1, 1
_SUCCESS_FLAGS, _NXDOMAIN_FLAGS = 0x8580, 0x8583  # response, authoritative, recursion desired and available
_TTL_SECONDS = 5
_SERVICE_SELECTOR = "labelSelector=kubernetes.io/service-name%3D"
AddressLookup = Callable[[str, str, str], str | None]


def build_response(query: bytes, lookup: AddressLookup) -> bytes:
    """Return the response to a query with one question (RFC 1035).

    `lookup` returns an IPv4 address for a namespace, the name of a Service, and the host name of a pod or an empty
    string. Raises IndexError if the query is malformed.
    """
    labels, name_end = _parse_question(query)
    address = _resolve_labels(labels, lookup)
    record_type = int.from_bytes(query[name_end : name_end + 2], "big")
    has_record = address is not None and record_type == _TYPE_A
    flags = _NXDOMAIN_FLAGS if address is None else _SUCCESS_FLAGS
    counts = (1, int(has_record), 0, 0)
    header = query[:2] + flags.to_bytes(2, "big") + b"".join(count.to_bytes(2, "big") for count in counts)
    return header + query[_HEADER_BYTES : name_end + 4] + (_build_record(address) if address and has_record else b"")


def _parse_question(query: bytes) -> tuple[list[str], int]:
    """Return the labels of the requested name in lower case, and the offset of the first byte after the name."""
    labels = []
    offset = _HEADER_BYTES
    while length := query[offset]:
        labels.append(query[offset + 1 : offset + 1 + length].decode("ascii", "replace").lower())
        offset += 1 + length
    return labels, offset + 1


def _resolve_labels(labels: list[str], lookup: AddressLookup) -> str | None:
    if len(labels) not in (5, 6) or ".".join(labels[-3:]) != DOMAIN:
        return None
    *host, name, namespace = labels[:-3]
    return lookup(namespace, name, "".join(host))


def _build_record(address: str) -> bytes:
    """Return an A record whose name is a pointer to the name in the question."""
    name = (0xC000 | _HEADER_BYTES).to_bytes(2, "big")
    fields = [(_TYPE_A, 2), (_CLASS_INTERNET, 2), (_TTL_SECONDS, 4), (4, 2)]
    return name + b"".join(value.to_bytes(size, "big") for value, size in fields) + IPv4Address(address).packed


def create_service_lookup(target: Node) -> AddressLookup:
    """Return a lookup that asks the API server for every query, so that no answer is stale."""
    token = json.loads(target.kubeconfig_path("admin").read_text())["users"][0]["user"]["token"]
    ssl_context = ssl.create_default_context(cafile=str(target.pki_path("ca.crt")))

    def get_json(path: str) -> dict[str, Any]:
        request = urllib.request.Request(target.addresses.api + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, context=ssl_context, timeout=_TTL_SECONDS) as response:
            return dict(json.load(response))

    def look_up_address(namespace: str, name: str, host: str) -> str | None:
        try:
            if host:
                endpoint_slices = get_json(
                    f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?{_SERVICE_SELECTOR}{name}"
                )
                return find_pod_address(endpoint_slices["items"], host)
            return str(IPv4Address(get_json(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]))
        except (urllib.error.URLError, AddressValueError, KeyError):
            return None

    return look_up_address


def find_pod_address(endpoint_slices: list[dict[str, Any]], host: str) -> str | None:
    """Return the address of the pod with that host name in the EndpointSlices of a Service."""
    endpoints = (
        endpoint
        for endpoint_slice in endpoint_slices
        for endpoint in endpoint_slice["endpoints"] or []
        if endpoint.get("hostname") == host
    )
    return next((str(IPv4Address(address)) for each in endpoints for address in each["addresses"]), None)


def main() -> None:
    """Answer queries until the process is stopped."""
    target = node.create_node(sys.argv[1])
    lookup = create_service_lookup(target)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((target.addresses.node, PORT))
        while True:
            query, client = server.recvfrom(4096)
            try:
                server.sendto(build_response(query, lookup), client)
            except (IndexError, OSError) as error:
                print(f"dropped a query from {client[0]}: {error}", flush=True)


if __name__ == "__main__":
    main()
