"""What comes from the distribution: packages that a cluster needs, and a base image made without a registry."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import log_step
from local_cluster.errors import UserError

# A program, or a file where there is no program on PATH, and the Debian package that brings it.
PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "openssl": "openssl",
    "unshare": "util-linux",
}
SUITE = "bookworm"
# python for the images; busybox becomes the image that holds a pod's namespaces and serves tests.
BASE_PACKAGES = "python3,python3-venv,ca-certificates,busybox-static"
_CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def find_missing_packages() -> list[str]:
    return sorted({package for program, package in PACKAGES.items() if not _is_installed(program)})


def _is_installed(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def install_packages(packages: Iterable[str]) -> None:
    """Install packages by apt-get, and say so."""
    names = list(packages)
    if not names:
        return
    if shutil.which("apt-get") is None:
        raise UserError(f"install {' '.join(names)} with this system's package manager, then run it again")
    log = paths.get_logs_folder() / "apt.log"
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with log_step(f"installed by apt-get: {' '.join(names)}", log):
        shell.run(["apt-get", "update"], log, env=environment)
        shell.run(["apt-get", "install", "-y", "--no-install-recommends", *names], log, env=environment)


def bootstrap_root(target: Path) -> None:
    """A minimal Debian with Python, and this machine's certificate authorities."""
    log = paths.get_logs_folder() / "debootstrap.log"
    include_argument = f"--include={BASE_PACKAGES}"
    shell.run(["debootstrap", "--variant=minbase", include_argument, SUITE, target], log)
    for archive in (target / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    cache.remove_folder(target / "var/lib/apt/lists")
    (target / "var/lib/apt/lists").mkdir()
    shutil.copyfile(_find_ca_bundle(), target / _CA_BUNDLE)


def _find_ca_bundle() -> Path:
    """A machine behind a proxy of its own trusts more than Debian does; so must what is built on it."""
    return Path(os.environ.get("SSL_CERT_FILE") or f"/{_CA_BUNDLE}")


# Set in the base image, not in the Dockerfiles: uv and pip bring their own bundles otherwise.
BASE_ENVIRONMENT = {"SSL_CERT_FILE": f"/{_CA_BUNDLE}", "PIP_CERT": f"/{_CA_BUNDLE}"}
