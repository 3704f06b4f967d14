"""A real S3 server on the loopback interface."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from tests.support.trainer.private_authority import PrivateAuthority

from finetune_trainer.contract import Storage

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

KEY_ID, SECRET = "test-key-id", "test-secret-canary"
VIRTUAL_DOMAIN = "s3.test"
_DEV = Path(__file__).parents[3] / "dev"


@dataclass
class S3Server:
    """A running versitygw with the buckets `data`, `models` and `results`."""

    endpoint: str
    root: Path
    authority: PrivateAuthority | None = None
    """The authority of the server's certificate. If unset, the server speaks plain HTTP."""

    @cached_property
    def client(self) -> S3Client:
        """The owner's client, for set-up and checks. It is created once, so that no test's environment affects it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            verify=str(self.authority.bundle) if self.authority else None,
        )

    def put(self, uri: str, content: bytes) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def list_keys(self, uri: str) -> list[str]:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def add_user(self, key_id: str, secret: str) -> None:
        """Create a user without permissions."""
        admin: list[str | Path] = [
            _versitygw(),
            "admin",
            "--access",
            KEY_ID,
            "--secret",
            SECRET,
            "--endpoint-url",
            self.endpoint,
        ]
        user = ["create-user", "--access", key_id, "--secret", secret, "--role", "user"]
        subprocess.run([*admin, *user], check=True, capture_output=True)

    @property
    def storage(self) -> Storage:
        return Storage(endpoint=self.endpoint)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _versitygw() -> Path:
    """Return the program that local clusters use, built once per machine."""
    if str(_DEV) not in sys.path:
        sys.path.append(str(_DEV))
    tools = importlib.import_module("local_cluster.tools")
    tools.ensure_built([module for module in tools.MODULES if module.name == "versitygw"])
    program: Path = tools.find_program("versitygw")
    return program


def serve(folder: Path, authority: PrivateAuthority | None = None) -> Iterator[S3Server]:
    """Start a server with its files below `folder`. It is stopped when the iterator ends."""
    port = free_port()
    for name in ("root", "iam"):
        (folder / name).mkdir()
    command: list[str | Path] = [_versitygw(), "--port", f"127.0.0.1:{port}", "--quiet", "--iam-dir", folder / "iam"]
    command += ["--virtual-domain", VIRTUAL_DOMAIN, "posix", folder / "root"]
    if authority:
        command[1:1] = ["--cert", authority.certificate, "--key", authority.key]
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": SECRET}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = S3Server(f"{'https' if authority else 'http'}://127.0.0.1:{port}", folder / "root", authority)
        try:
            _wait_until(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            for bucket in ("data", "models", "results"):
                server.client.create_bucket(Bucket=bucket)
            yield server
        finally:
            process.terminate()


def _wait_until(attempt: Callable[[], None]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
