"""Runs a real etcd and kube-apiserver without controllers. The tests act as the controllers."""

from __future__ import annotations

import asyncio
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp

from finetune_operator.codegen.crd import DEFINITIONS, build_crd
from local_cluster import tools

ADMIN_TOKEN, OPERATOR_TOKEN = secrets.token_hex(16), secrets.token_hex(16)


KUBERNETES_VERSIONS = (tools.KUBERNETES_VERSION.rpartition(".")[0], "1.33")
"""The version of the API server that is built, and the oldest one that it can emulate."""


def find_free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _start_process(folder: Path, command: list[Path | str]) -> subprocess.Popen[bytes]:
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)


@contextmanager
def run_api_server(folder: Path, extra_flags: Mapping[str, object] | None = None) -> Iterator[str]:
    """Run a kube-apiserver with the CRD and additional flags. Yields its URL."""
    tools.ensure_built()
    etcd, apiserver = tools.find_program("etcd"), tools.find_program("kube-apiserver")
    etcd_port, etcd_peer_port, port = (find_free_port() for _ in range(3))
    (folder / "tokens.csv").write_text(
        f'{ADMIN_TOKEN},admin,admin,"system:masters"\n{OPERATOR_TOKEN},operator,operator\n'
    )
    subprocess.run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"], check=True, capture_output=True)
    processes = [_start_process(folder, [etcd, *_build_etcd_flags(folder, etcd_port, etcd_peer_port)])]
    flags = {
        "etcd-servers": f"http://127.0.0.1:{etcd_port}",
        "secure-port": port,
        "bind-address": "127.0.0.1",
        "cert-dir": folder / "certs",
        "service-account-key-file": "sa.key",
        "service-account-signing-key-file": "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "token-auth-file": "tokens.csv",
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.0.0.0/24",
        "disable-admission-plugins": "ServiceAccount",
        "enable-admission-plugins": "OwnerReferencesPermissionEnforcement",  # as OpenShift has it
        **(extra_flags or {}),
    }
    processes.append(_start_process(folder, [apiserver, *(f"--{key}={value}" for key, value in flags.items())]))
    try:
        url = f"https://127.0.0.1:{port}"
        asyncio.run(_install_crds(url))
        yield url
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def run_emulated_api_server(folder: Path, version: str) -> AbstractContextManager[str]:
    """Run a kube-apiserver with the APIs and the validation of this version. Yields its URL."""
    return run_api_server(folder, {"emulated-version": version})


def _build_etcd_flags(folder: Path, client_port: int, peer_port: int) -> list[str]:
    flags = {f"{kind}-client-urls": f"http://127.0.0.1:{client_port}" for kind in ("listen", "advertise")}
    flags |= {f"{kind}-peer-urls": f"http://127.0.0.1:{peer_port}" for kind in ("listen", "initial-advertise")}
    flags |= {"initial-cluster": f"default=http://127.0.0.1:{peer_port}", "data-dir": f"{folder}/etcd"}
    return ["--unsafe-no-fsync", *(f"--{key}={value}" for key, value in flags.items())]


async def _install_crds(url: str) -> None:
    async with open_session() as client:
        deadline = time.monotonic() + 50
        while not await _is_served(client, f"{url}/readyz"):
            assert time.monotonic() < deadline, "kube-apiserver does not get ready"
            await asyncio.sleep(0.2)
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for definition in DEFINITIONS:
            async with client.post(url + path, json=build_crd(definition)) as response:
                assert response.status == 201, await response.text()
        for definition in DEFINITIONS:
            while not await _is_served(client, f"{url}/apis/finetune.dev/v1alpha1/{definition.plural}"):
                await asyncio.sleep(0.1)


async def _is_served(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def open_session(token: str = ADMIN_TOKEN) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session as administrator, or as the operator."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers) as session:
        yield session
    await asyncio.sleep(0.1)  # https://docs.aiohttp.org/en/stable/client_advanced.html#graceful-shutdown


def write_kubeconfig(folder: Path, server: str, token: str = "unused") -> Path:
    """Write a kubeconfig for that server."""
    path = folder / "kubeconfig"
    path.write_text(f"""
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: test}}}}]
clusters: [{{name: test, cluster: {{server: "{server}"}}}}]
users: [{{name: test, user: {{token: "{token}"}}}}]
""")
    return path
