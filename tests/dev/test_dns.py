"""Tests of the responses of the DNS server, byte for byte."""

import struct

import pytest

from local_cluster import dns

RECORDS = {("default", "kubernetes", ""): "10.96.0.1", ("team", "job", "job-0"): "10.88.0.7"}
A, AAAA = 1, 28


def _build_query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", kind, 1)


@pytest.mark.parametrize(
    ("name", "kind", "code", "address"),
    [
        ("kubernetes.default.svc.cluster.local", A, 0, "10.96.0.1"),
        ("Kubernetes.Default.svc.cluster.local", A, 0, "10.96.0.1"),
        ("kubernetes.default.svc.cluster.local", AAAA, 0, None),
        ("other.default.svc.cluster.local", A, 3, None),
        ("job-0.job.team.svc.cluster.local", A, 0, "10.88.0.7"),
        ("job-1.job.team.svc.cluster.local", A, 3, None),
        ("job-0.job.svc.cluster.local", A, 3, None),
        ("kubernetes.default.svc.default.svc.cluster.local", A, 3, None),
        ("pypi.org", A, 3, None),
    ],
)
def test_build_response_query_has_code_and_address(name: str, kind: int, code: int, address: str | None) -> None:
    query = _build_query(name, kind)
    response = dns.build_response(query, lambda *names: RECORDS.get(names))
    number, flags, questions, answers, _, _ = struct.unpack(">6H", response[:12])
    assert (number, flags & 0xF, questions) == (7, code, 1)
    assert response[12 : len(query)] == query[12:]
    assert answers == (1 if address else 0)
    if address:
        assert ".".join(str(byte) for byte in response[-4:]) == address


def test_build_response_malformed_query_raises() -> None:
    with pytest.raises(IndexError):
        dns.build_response(b"short", lambda *_: None)


def test_pod_address_is_found_by_hostname() -> None:
    slices = [
        {"endpoints": None},
        {"endpoints": [{"addresses": ["10.88.0.7"], "hostname": "job-0"}, {"addresses": ["10.88.0.8"]}]},
    ]
    assert dns.find_pod_address(slices, "job-0") == "10.88.0.7"
    assert dns.find_pod_address(slices, "job-1") is None
