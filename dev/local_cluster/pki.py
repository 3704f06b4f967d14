"""Certificates, tokens and kubeconfigs of a cluster. They are created at each start."""

import secrets
from pathlib import Path

from local_cluster import node, shell
from local_cluster.node import Node

_VALIDITY_ARGUMENTS = ["-days", "365"]
_KEY_ARGUMENTS = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def create_credentials(target: Node) -> None:
    """Write the certificates, keys, tokens and kubeconfigs that the components read at their start."""
    target.pki_path("").mkdir(parents=True, mode=0o700)
    target.config_path("").mkdir()
    _create_authority(target)
    _create_certificate(
        target, "server", "/CN=kube-apiserver", f"subjectAltName={node.build_subject_alt_names(target)}"
    )
    _create_certificate(
        target, "client", "/O=system:masters/CN=kube-apiserver-kubelet-client", "extendedKeyUsage=clientAuth"
    )
    service_account_key = target.pki_path("service-account.key")
    shell.capture_output(["openssl", "genrsa", "-out", service_account_key, "2048"])
    tokens = {user: secrets.token_urlsafe(24) for user in node.USERS}
    _write_private_file(target.config_path("tokens.csv"), node.render_tokens_csv(target, tokens))
    for user, token in tokens.items():
        _write_private_file(target.kubeconfig_path(user), node.render_kubeconfig(target, token))


def _write_private_file(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def _create_authority(target: Node) -> None:
    command = ["openssl", "req", "-x509", *_KEY_ARGUMENTS, *_VALIDITY_ARGUMENTS, "-subj", f"/CN={target.name}-ca"]
    extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    files: list[str | Path] = ["-keyout", target.pki_path("ca.key"), "-out", target.pki_path("ca.crt")]
    shell.capture_output([*command, *extensions, *files])


def _create_certificate(target: Node, name: str, subject: str, extension: str) -> None:
    """Create a key and a certificate that is signed by the cluster's authority."""
    key, request, certificate, extensions = (target.pki_path(f"{name}.{kind}") for kind in ("key", "csr", "crt", "ext"))
    extensions.write_text(f"{extension}\nauthorityKeyIdentifier=keyid\nkeyUsage=digitalSignature\n")
    shell.capture_output(["openssl", "req", *_KEY_ARGUMENTS, "-keyout", key, "-out", request, "-subj", subject])
    authority = ["-CA", str(target.pki_path("ca.crt")), "-CAkey", str(target.pki_path("ca.key")), "-CAcreateserial"]
    files: list[str | Path] = ["-in", request, "-out", certificate, "-extfile", extensions]
    shell.capture_output(["openssl", "x509", "-req", *authority, *files, *_VALIDITY_ARGUMENTS])
