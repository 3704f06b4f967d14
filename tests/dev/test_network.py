"""Tests of the addresses that are derived from the name of a cluster."""

import ipaddress

import pytest

from local_cluster.network import compute_addresses

NAMES = ["demo", "test", "dev", "a", "a-name-of-thirty-two-characters-x"]
BENCHMARK_RANGE = ipaddress.IPv4Network("198.18.0.0/15")


@pytest.mark.parametrize("name", NAMES)
def test_addresses_share_block_of_benchmark_range(name: str) -> None:
    network_addresses = compute_addresses(name)
    block = ipaddress.IPv4Network(f"{network_addresses.host}/30", strict=False)
    assert block.subnet_of(BENCHMARK_RANGE)
    assert [str(host) for host in block.hosts()] == [network_addresses.host, network_addresses.node]


@pytest.mark.parametrize("name", NAMES)
def test_addresses_interface_name_fits_kernel_limit(name: str) -> None:
    assert len(compute_addresses(name).interface) <= 15


def test_addresses_differ_between_clusters() -> None:
    names = [*NAMES, *(f"ci-{number}" for number in range(200))]
    assert len({compute_addresses(name).node for name in names}) == len(names)
    assert len({compute_addresses(name).interface for name in names}) == len(names)


def test_addresses_urls_name_the_node() -> None:
    network_addresses = compute_addresses("demo")
    assert (network_addresses.api, network_addresses.s3) == (
        f"https://{network_addresses.node}:6443",
        f"http://{network_addresses.node}:7070",
    )
