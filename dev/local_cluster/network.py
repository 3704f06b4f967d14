"""Addresses of a cluster, and the veth pair that joins its network namespace to the host."""

import json
import zlib
from dataclasses import dataclass
from typing import Any

from local_cluster import shell
from local_cluster.errors import UserError

# These live inside the namespace only, so all clusters share them.
POD_CIDR = "10.88.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
API_PORT = 6443
S3_PORT = 7070
_NODE_INTERFACE = "eth0"
_MAX_INTERFACE_LENGTH = 15


@dataclass(frozen=True)
class Addresses:
    """Both ends of the pair: a /30 out of 198.18.0.0/15, the range that is kept for tests and never routed."""

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
    """The same name has the same addresses on every machine."""
    name_hash = zlib.crc32(name.encode())
    block = name_hash % (1 << 15)  # a /15 holds 2^15 blocks of four addresses
    base = f"198.{18 + (block >> 14)}.{(block >> 6) & 255}"
    first_host = (block & 63) * 4
    interface = f"ftj-{name}"
    if len(interface) > _MAX_INTERFACE_LENGTH:
        interface = f"ftj-{name_hash:08x}"
    return Addresses(interface, f"{base}.{first_host + 1}", f"{base}.{first_host + 2}")


def check_addresses_free(addresses: Addresses) -> None:
    """Another interface with our address means that traffic would go astray."""
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
    """Clear a pair that a killed run left; with the namespace gone there is usually none."""
    shell.succeeds(["ip", "link", "delete", addresses.interface])


def create_link(addresses: Addresses, pid: int) -> None:
    """On the host: make the pair, give one end to the namespace of that process, and address ours."""
    peer = ["peer", "name", _NODE_INTERFACE, "netns", str(pid)]
    shell.capture_output(["ip", "link", "add", addresses.interface, "type", "veth", *peer])
    shell.capture_output(["ip", "address", "add", f"{addresses.host}/30", "dev", addresses.interface])
    shell.capture_output(["ip", "link", "set", addresses.interface, "up"])


def has_link() -> bool:
    """In the namespace: whether our end has arrived."""
    return shell.succeeds(["ip", "link", "show", _NODE_INTERFACE])


def configure_link(addresses: Addresses) -> None:
    """In the namespace. The default route serves no traffic: a service's address needs one to be routed at all."""
    shell.capture_output(["ip", "link", "set", "lo", "up"])
    shell.capture_output(["ip", "address", "add", f"{addresses.node}/30", "dev", _NODE_INTERFACE])
    shell.capture_output(["ip", "link", "set", _NODE_INTERFACE, "up"])
    shell.capture_output(["ip", "route", "add", "default", "via", addresses.host])
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")
