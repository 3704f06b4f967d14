"""Certificates, tokens and kubeconfigs of one cluster; made anew at each start."""

import secrets
from pathlib import Path

from local_cluster import node, shell
from local_cluster.node import Node

_DAYS = ["-days", "365"]
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def create(target: Node) -> None:
    """Write everything that the components read before they start."""
    target.pki("").mkdir(parents=True, mode=0o700)
    target.config("").mkdir()
    _authority(target)
    _certificate(target, "server", "/CN=kube-apiserver", f"subjectAltName={node.server_names(target)}")
    _certificate(target, "client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth")
    service_accounts = target.pki("service-account.key")
    shell.output(["openssl", "genrsa", "-out", service_accounts, "2048"])
    tokens = {user: secrets.token_urlsafe(24) for user in node.USERS}
    _write(target.config("tokens.csv"), node.tokens_csv(target, tokens))
    for user, token in tokens.items():
        _write(target.kubeconfig(user), node.kubeconfig(target, token))


def _write(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def _authority(target: Node) -> None:
    files: list[str | Path] = ["-keyout", target.pki("ca.key"), "-out", target.pki("ca.crt")]
    extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    shell.output(["openssl", "req", "-x509", *_KEY, *_DAYS, *files, "-subj", f"/CN={target.name}-ca", *extensions])


def _certificate(target: Node, name: str, subject: str, extension: str) -> None:
    key, request, certificate = (target.pki(f"{name}.{kind}") for kind in ("key", "csr", "crt"))
    extensions = target.pki(f"{name}.ext")
    extensions.write_text(f"{extension}\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n")
    shell.output(["openssl", "req", *_KEY, "-keyout", key, "-out", request, "-subj", subject])
    signer: list[str | Path] = ["-CA", target.pki("ca.crt"), "-CAkey", target.pki("ca.key"), "-CAcreateserial"]
    files: list[str | Path] = ["-in", request, "-out", certificate, "-extfile", extensions]
    shell.output(["openssl", "x509", "-req", *signer, *files, *_DAYS])
