"""A certificate authority that no machine trusts, and a certificate of it for 127.0.0.1."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import certifi


class PrivateAuthority(NamedTuple):
    """PEM files: the bundle of trusted authorities, and the server's certificate with its key."""

    bundle: Path
    """All public authorities, and at the end the private one, as trust-manager writes a bundle."""
    certificate: Path
    key: Path


def create_authority(folder: Path) -> PrivateAuthority:
    """Create the authority and the certificate."""
    names = ("bundle.pem", "server.pem", "server.key")
    authority = PrivateAuthority(*(folder / name for name in names))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    ca = ["-x509", "-subj", "/CN=Private Authority", "-keyout", "ca.key", "-out", "ca.pem"]
    server = ["-x509", "-CA", "ca.pem", "-CAkey", "ca.key", "-subj", "/CN=server", "-keyout", "server.key"]
    extensions = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    _run_openssl(folder, ["req", *curve, *ca])
    _run_openssl(folder, ["req", *curve, *server, *extensions, "-out", "server.pem"])
    authority.bundle.write_text(Path(certifi.where()).read_text() + (folder / "ca.pem").read_text())
    return authority


def _run_openssl(folder: Path, arguments: list[str]) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
