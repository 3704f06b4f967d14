"""Parts from the distribution: packages that a cluster needs, and the root file system of the base image."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from local_cluster import cache, paths, shell
from local_cluster.console import log_step
from local_cluster.errors import UserError

# A program on PATH, or an absolute path, and the Debian package that contains it.
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
BROWSER, BROWSER_PACKAGE = "chromium", "chromium"
SUITE = "bookworm"
# Python is for the images; busybox is the pause image, which is also the small image of tests.
BASE_PACKAGES = "python3,python3-venv,ca-certificates,busybox-static"
_CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


def find_missing_packages() -> list[str]:
    return sorted({package for program, package in PACKAGES.items() if not _is_installed(program)})


def _is_installed(program: str) -> bool:
    return Path(program).exists() if program.startswith("/") else shutil.which(program) is not None


def install_packages(packages: Iterable[str]) -> None:
    """Install packages with apt-get. Raises UserError on systems without it."""
    names = list(packages)
    if not names:
        return
    if shutil.which("apt-get") is None:
        raise UserError(
            f"packages are missing: install {' '.join(names)} with your package manager, then run the command again"
        )
    log = paths.get_logs_folder() / "apt.log"
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    with log_step(f"installing packages with apt-get: {' '.join(names)}", log):
        shell.run(["apt-get", "update"], log, env=environment)
        shell.run(["apt-get", "install", "-y", "--no-install-recommends", *names], log, env=environment)


def install_browser() -> None:
    """Install the browser that the tests of `finetune ui` drive, unless it is installed."""
    if not _is_installed(BROWSER):
        install_packages([BROWSER_PACKAGE])


def find_browser() -> str:
    """Return the path of the browser. Raises UserError if it is missing."""
    path = shutil.which(BROWSER)
    if path is None:
        raise UserError(
            f"{BROWSER} is missing: install it with `sudo PYTHONPATH=dev .venv/bin/python -m local_cluster browser`, "
            "or with your package manager"
        )
    return path


def bootstrap_root(target: Path) -> None:
    """Install a minimal Debian with Python, and copy the host's certificate authorities into it."""
    log = paths.get_logs_folder() / "debootstrap.log"
    include_argument = f"--include={BASE_PACKAGES}"
    shell.run(["debootstrap", "--variant=minbase", include_argument, SUITE, target], log)
    for archive in (target / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    cache.remove_folder(target / "var/lib/apt/lists")
    (target / "var/lib/apt/lists").mkdir()
    shutil.copyfile(_find_ca_bundle(), target / _CA_BUNDLE)


def _find_ca_bundle() -> Path:
    """Return the host's CA bundle: builds behind a company proxy must trust the same authorities as the host."""
    return Path(os.environ.get("SSL_CERT_FILE") or f"/{_CA_BUNDLE}")


# Set in the base image, not in the Dockerfiles. Without these variables uv and pip use bundles of their own.
BASE_ENVIRONMENT = {"SSL_CERT_FILE": f"/{_CA_BUNDLE}", "PIP_CERT": f"/{_CA_BUNDLE}"}
