"""A cluster's name decides its addresses."""

import ipaddress

import pytest

from local_cluster.network import compute_addresses

NAMES = ["demo", "test", "dev", "a", "a-name-of-thirty-two-characters-x"]
TESTS_ONLY = ipaddress.IPv4Network("198.18.0.0/15")


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_share_a_block_of_the_range_for_tests(name: str) -> None:
    found = compute_addresses(name)
    block = ipaddress.IPv4Network(f"{found.host}/30", strict=False)
    assert block.subnet_of(TESTS_ONLY)
    assert [str(host) for host in block.hosts()] == [found.host, found.node]


@pytest.mark.parametrize("name", NAMES)
def test_interface_names_fit_the_kernel(name: str) -> None:
    assert len(compute_addresses(name).interface) <= 15


def test_clusters_stand_side_by_side() -> None:
    names = [*NAMES, *(f"ci-{number}" for number in range(200))]
    assert len({compute_addresses(name).node for name in names}) == len(names)
    assert len({compute_addresses(name).interface for name in names}) == len(names)


def test_urls_name_the_node() -> None:
    found = compute_addresses("demo")
    assert (found.api, found.s3) == (f"https://{found.node}:6443", f"http://{found.node}:7070")
