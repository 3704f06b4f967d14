"""Addresses of a cluster, and the veth pair that joins its network namespace to the host."""

import json
import zlib
from dataclasses import dataclass
from typing import Any

from local_cluster import shell
from local_cluster.errors import Problem

# These live inside the namespace only, so all clusters share them.
POD_CIDR = "10.88.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
API_PORT = 6443
S3_PORT = 7070
_NODE_SIDE = "eth0"
_LONGEST_INTERFACE = 15


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


def addresses(name: str) -> Addresses:
    """The same name has the same addresses on every machine."""
    hashed = zlib.crc32(name.encode())
    block = hashed % (1 << 15)  # a /15 holds 2^15 blocks of four addresses
    base = f"198.{18 + (block >> 14)}.{(block >> 6) & 255}"
    first = (block & 63) * 4
    interface = f"ftj-{name}"
    if len(interface) > _LONGEST_INTERFACE:
        interface = f"ftj-{hashed:08x}"
    return Addresses(interface, f"{base}.{first + 1}", f"{base}.{first + 2}")


def check_free(wanted: Addresses) -> None:
    """Another interface with our address means that traffic would go astray."""
    taken = {
        info["local"]: link["ifname"]
        for link in _ip_json("-4", "address", "show")
        for info in link["addr_info"]
        if link["ifname"] != wanted.interface
    }
    for address in (wanted.host, wanted.node):
        if address in taken:
            raise Problem(f"address {address} is taken by {taken[address]}: choose another cluster name")


def _ip_json(*words: str) -> list[dict[str, Any]]:
    return [link for link in json.loads(shell.output(["ip", "-json", *words])) if link]


def remove_link(wanted: Addresses) -> None:
    """Clear a pair that a killed run left; with the namespace gone there is usually none."""
    shell.succeeds(["ip", "link", "delete", wanted.interface])


def join(wanted: Addresses, pid: int) -> None:
    """On the host: make the pair, give one end to the namespace of that process, and address ours."""
    peer = ["peer", "name", _NODE_SIDE, "netns", str(pid)]
    shell.output(["ip", "link", "add", wanted.interface, "type", "veth", *peer])
    shell.output(["ip", "address", "add", f"{wanted.host}/30", "dev", wanted.interface])
    shell.output(["ip", "link", "set", wanted.interface, "up"])


def joined() -> bool:
    """In the namespace: whether our end has arrived."""
    return shell.succeeds(["ip", "link", "show", _NODE_SIDE])


def configure(wanted: Addresses) -> None:
    """In the namespace. The default route serves no traffic: a service's address needs one to be routed at all."""
    shell.output(["ip", "link", "set", "lo", "up"])
    shell.output(["ip", "address", "add", f"{wanted.node}/30", "dev", _NODE_SIDE])
    shell.output(["ip", "link", "set", _NODE_SIDE, "up"])
    shell.output(["ip", "route", "add", "default", "via", wanted.host])
    with open("/proc/sys/net/ipv4/ip_forward", "w") as switch:
        switch.write("1")
