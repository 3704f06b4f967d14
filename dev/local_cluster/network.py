"""Addresses of a cluster, and the veth pair that connects its network namespace to the host."""

import json
import zlib
from dataclasses import dataclass
from typing import Any

from local_cluster import shell
from local_cluster.errors import UserError

# These addresses are only used inside the network namespace, so they are the same in all clusters.
POD_CIDR = "10.88.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
API_PORT = 6443
S3_PORT = 7070
_NODE_INTERFACE = "eth0"
_MAX_INTERFACE_LENGTH = 15


@dataclass(frozen=True)
class Addresses:
    """Both ends of the veth pair: a /30 in 198.18.0.0/15, which RFC 2544 reserves for benchmarks."""

    interface: str
    host: str
    node: str

    @property
    def api(self) -> str:
        return f"https://{self.node}:{API_PORT}"

    @property
    def s3(self) -> str:
        return f"http://{self.node}:{S3_PORT}"


def compute_addresses(name: str) -> Addresses:
    """Derive the addresses from a hash of the cluster's name, so that they are the same on every machine."""
    name_hash = zlib.crc32(name.encode())
    block = name_hash % (1 << 15)  # a /15 holds 2^15 blocks of four addresses
    base = f"198.{18 + (block >> 14)}.{(block >> 6) & 255}"
    first_host = (block & 63) * 4
    interface = f"ftj-{name}"
    if len(interface) > _MAX_INTERFACE_LENGTH:
        interface = f"ftj-{name_hash:08x}"
    return Addresses(interface, f"{base}.{first_host + 1}", f"{base}.{first_host + 2}")


def check_addresses_free(addresses: Addresses) -> None:
    """Raise UserError if another interface of the host has one of the addresses."""
    used_addresses = {
        info["local"]: link["ifname"]
        for link in _query_ip("-4", "address", "show")
        for info in link["addr_info"]
        if link["ifname"] != addresses.interface
    }
    for address in (addresses.host, addresses.node):
        if address in used_addresses:
            raise UserError(f"address {address} is taken by {used_addresses[address]}: choose another cluster name")


def _query_ip(*arguments: str) -> list[dict[str, Any]]:
    return [link for link in json.loads(shell.capture_output(["ip", "-json", *arguments])) if link]


def remove_link(addresses: Addresses) -> None:
    """Remove the pair of a killed cluster. Usually the kernel removed it together with the namespace."""
    shell.succeeds(["ip", "link", "delete", addresses.interface])


def create_link(addresses: Addresses, pid: int) -> None:
    """Create the pair on the host, move one end into the network namespace of `pid`, and configure the other one."""
    peer = ["peer", "name", _NODE_INTERFACE, "netns", str(pid)]
    shell.capture_output(["ip", "link", "add", addresses.interface, "type", "veth", *peer])
    shell.capture_output(["ip", "address", "add", f"{addresses.host}/30", "dev", addresses.interface])
    shell.capture_output(["ip", "link", "set", addresses.interface, "up"])


def has_link() -> bool:
    """Return whether the namespace of this process has its end of the pair."""
    return shell.succeeds(["ip", "link", "show", _NODE_INTERFACE])


def configure_link(addresses: Addresses) -> None:
    """Configure the end in the namespace of this process. ClusterIPs are only routed if there is a default route."""
    shell.capture_output(["ip", "link", "set", "lo", "up"])
    shell.capture_output(["ip", "address", "add", f"{addresses.node}/30", "dev", _NODE_INTERFACE])
    shell.capture_output(["ip", "link", "set", _NODE_INTERFACE, "up"])
    shell.capture_output(["ip", "route", "add", "default", "via", addresses.host])
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")
