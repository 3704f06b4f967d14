"""A real S3 server on loopback, for the whole session."""

from __future__ import annotations

import http.server
import importlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV, Storage

if TYPE_CHECKING:
    from tests.trainer.forked_pods import Forks
    from types_boto3_s3.client import S3Client

KEY_ID, SECRET = "test-key-id", "test-secret-canary"
VIRTUAL_DOMAIN = "s3.test"
_DEV = Path(__file__).parents[2] / "dev"


@dataclass
class S3Server:
    """versitygw with buckets `data`, `models` and `results`."""

    endpoint: str
    root: Path

    @cached_property
    def client(self) -> S3Client:
        """The owner's own, for setting up and looking; made once, so no test's environment reaches it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def put(self, uri: str, content: bytes) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def get(self, uri: str) -> bytes:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def keys(self, uri: str) -> list[str]:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [each["Key"] for page in pages for each in page.get("Contents", [])]

    def add_user(self, key_id: str, secret: str) -> None:
        """One who owns nothing, so may do nothing."""
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


@dataclass
class Fault:
    """Something that goes wrong with requests of one method for keys that hold `key`."""

    kind: str
    """`reset`, `delay`, `stall`, `flip` (one bit of the answer), `late` (done, but the answer is lost), or a status."""
    method: str = "GET"
    key: str = "/"
    times: int = 1

    @property
    def answer(self) -> bytes:
        codes = {
            "200": "InternalError",
            "400": "ExpiredToken",
            "503": "SlowDown",
            "500": "InternalError",
            "409": "ConditionalRequestConflict",
            "412": "PreconditionFailed",
        }
        return f"<Error><Code>{codes[self.kind]}</Code><Message>no</Message></Error>".encode()


class FaultyProxy(http.server.ThreadingHTTPServer):
    """A forward proxy in front of the S3 server that notes what is written and misbehaves as it is told."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Forward)
        self.written: list[str] = []
        self.after_write: Callable[[str], None] = lambda path: None
        """Called when the store has done a write, before the writer hears of it."""
        self.cuts = 0
        """So many object bodies end half way."""
        self.drops = "\0"
        """Writes to keys that hold this are swallowed, as if the writer had died just before."""
        self.stalls = "\0"
        """Reads of keys that hold this are never answered."""
        self.stalled = threading.Event()
        self.unconditional = False
        """No write is refused for its If-Match or If-None-Match, as with older stores."""
        self.faults: list[Fault] = []
        """What else goes wrong; each so often as it says."""

    def fault(self, method: str, path: str) -> Fault | None:
        """The next fault for this request, which is used up."""
        for each in self.faults:
            if each.times > 0 and each.method == method and each.key in path:
                each.times -= 1
                return each
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed go away without a word."""


class _Forward(http.server.BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"
    _fault: Fault | None = None

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.command == "PUT":
            self.server.written.append(self.path)
        if self.server.drops in self.path and self.command == "PUT":
            self.close_connection = True
            return
        if self.server.stalls in self.path:
            self.server.stalled.set()
            time.sleep(60)
        fault = self.server.fault(self.command, self.path)
        if fault and self._fails(fault):
            return
        self._fault = fault
        request = urllib.request.Request(self.path, body or None, dict(self.headers.items()), method=self.command)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request) as answer:
                if self.command == "PUT":
                    self.server.after_write(self.path)
                self._pass_on(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                self._pass_on(*self._refusal(error))

    def _refusal(self, error: urllib.error.HTTPError) -> tuple[int, Message, bytes]:
        if error.code == 412 and self.command == "PUT" and self.server.unconditional:
            accepted = Message()
            accepted["ETag"], accepted["Content-Length"] = '"1"', "0"
            return 200, accepted, b""
        return error.code, error.headers, error.read()

    def _fails(self, fault: Fault) -> bool:
        """Whether the request never reaches the store."""
        if fault.kind in ("delay", "stall"):
            time.sleep(2 if fault.kind == "delay" else 20)
        elif fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return True
        elif fault.kind.isdigit():
            headers = Message()
            headers["Content-Length"] = str(len(fault.answer))
            self._fault = None
            self._pass_on(int(fault.kind), headers, b"" if self.command == "HEAD" else fault.answer)
            return True
        return False

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def _pass_on(self, status: int, headers: Message, body: bytes) -> None:
        if self._fault and self._fault.kind == "late":
            self.close_connection = True
            return
        if self._fault and self._fault.kind == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        cut = self.server.cuts > 0 and self.command == "GET" and "list-type" not in self.path
        self.server.cuts -= cut
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """Between the code under test and the S3 server."""
    with FaultyProxy() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        yield server
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _versitygw() -> Path:
    """The local cluster's own, built once per machine."""
    if str(_DEV) not in sys.path:
        sys.path.append(str(_DEV))
    tools = importlib.import_module("local_cluster.tools")
    tools.ensure([module for module in tools.MODULES if module.name == "versitygw"])
    program: Path = tools.program("versitygw")
    return program


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    yield from serve(tmp_path_factory.mktemp("s3"))


def serve(folder: Path) -> Iterator[S3Server]:
    """Start one on files below `folder`; it ends with the iterator."""
    port = free_port()
    for name in ("root", "iam"):
        (folder / name).mkdir()
    command: list[str | Path] = [_versitygw(), "--port", f"127.0.0.1:{port}", "--quiet", "--iam-dir", folder / "iam"]
    command += ["--virtual-domain", VIRTUAL_DOMAIN, "posix", folder / "root"]
    environment = {**os.environ, "ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": SECRET}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = S3Server(f"http://127.0.0.1:{port}", folder / "root")
        try:
            _wait_until(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
            for bucket in ("data", "models", "results"):
                server.client.create_bucket(Bucket=bucket)
            yield server
        finally:
            process.terminate()


@pytest.fixture
def s3(s3_server: S3Server, credentials: Callable[..., Path]) -> S3Server:
    """The server, with its credentials in the environment as a pod has them."""
    credentials(KEY_ID, SECRET)
    return s3_server


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a mounted Secret; a key given as None is left out."""

    def write(key_id: str | None, secret: str | None) -> Path:
        folder = tmp_path / "credentials"
        folder.mkdir(exist_ok=True)
        for name, value in (("AWS_ACCESS_KEY_ID", key_id), ("AWS_SECRET_ACCESS_KEY", secret)):
            (folder / name).unlink(missing_ok=True)
            if value is not None:
                (folder / name).write_text(value + "\n")
        monkeypatch.setenv(S3_CREDENTIALS_DIR_ENV, str(folder))
        return folder

    return write


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Pods that start quickly, without Unsloth."""
    from tests.trainer.forked_pods import start_forks

    with start_forks("transformers") as started:
        yield started


def _wait_until(attempt: Callable[[], None]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return attempt()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
