"""Tests that attacks by a hostile store or environment have no effect."""

from __future__ import annotations

import http.server
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    DATA_ERRORS,
    MODEL_ERRORS,
    S3,
    Location,
    S3Object,
    check_disk_space,
    download_objects,
    find_objects,
    put_bytes,
    put_if_absent,
    read_object,
)

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

CANARY = "body-canary"
TERABYTE = 2**40


class HostileServer(http.server.ThreadingHTTPServer):
    """Responds to every request with `status`, `headers` and `body`, and records the requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HostileHandler)
        self.requests: list[str] = []
        self.signed_count = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.body: Callable[[str], str] = lambda path: CANARY

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have seen enough hang up."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HostileHandler(http.server.BaseHTTPRequestHandler):
    server: HostileServer

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append(f"{self.command} {self.path}")
        self.server.signed_count += "Authorization" in self.headers
        body = self.server.body(self.path).encode()
        self.send_response(self.server.status)
        for key, value in {"Content-Length": str(len(body)), **self.server.headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serve(server: HostileServer) -> Iterator[HostileServer]:
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def liar(credentials: Callable[..., Path]) -> Iterator[HostileServer]:
    """The stated endpoint."""
    credentials("id", "secret-canary")
    yield from _serve(HostileServer())


@pytest.fixture
def decoy() -> Iterator[HostileServer]:
    """Start a server that no request may reach."""
    yield from _serve(HostileServer())


def _listing_page(path: str, total: int, size: int) -> str:
    """A listing's page of 1,000 keys."""
    start = int(path.partition("continuation-token=")[2].partition("&")[0] or 0)
    keys = "".join(
        f"<Contents><Key>big/{number:06}.jsonl</Key><Size>{size}</Size><ETag>&quot;e&quot;</ETag></Contents>"
        for number in range(start, min(start + 1000, total))
    )
    is_truncated = start + 1000 < total
    token = f"<NextContinuationToken>{start + 1000}</NextContinuationToken>" if is_truncated else ""
    return f"<ListBucketResult><IsTruncated>{str(is_truncated).lower()}</IsTruncated>{token}{keys}</ListBucketResult>"


# --- the store


def test_find_huge_listing_is_refused_before_download(liar: HostileServer, tmp_path: Path) -> None:
    liar.body = lambda path: _listing_page(path, 10_000, TERABYTE)
    objects = find_objects(S3(Storage(endpoint=liar.url)), Location.parse("s3://data/big/"), DATA_ERRORS)
    assert len(objects) == 10_000
    with pytest.raises(TrainerError) as caught:
        check_disk_space(tmp_path, {"data": sum(item.size for item in objects)})
    assert caught.value.reason is Reason.DISK_FULL
    assert len(liar.requests) == 10
    assert all("list-type=2" in request for request in liar.requests)


REQUESTS: dict[str, Callable[[S3], object]] = {
    "list": lambda s3: find_objects(s3, Location.parse("s3://data/prefix/"), DATA_ERRORS),
    "head": lambda s3: find_objects(s3, Location.parse("s3://data/key.jsonl"), MODEL_ERRORS),
    "read": lambda s3: read_object(s3, Location.parse("s3://data/manifest.json")),
    "put": lambda s3: put_bytes(s3, Location.parse("s3://data/key.jsonl"), b"x"),
    "claim": lambda s3: put_if_absent(s3, Location.parse("s3://data/key.jsonl"), b"x"),
}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_requests_redirect_is_not_followed_or_quoted(
    liar: HostileServer, decoy: HostileServer, status: int, request_: Callable[[S3], object]
) -> None:
    liar.status = status
    liar.headers = {"Location": f"{decoy.url}/latest/meta-data/", "x-amz-bucket-region": "eu-west-1"}
    with pytest.raises(TrainerError) as caught:
        request_(S3(Storage(endpoint=liar.url)))
    assert caught.value.reason in (Reason.CONFIG_INVALID, Reason.STORAGE_UNREACHABLE)
    assert "canary" not in caught.value.message
    assert decoy.requests == []


@pytest.mark.parametrize("size", [11, 9 * 2**20], ids=["whole", "in ranges"])
def test_download_redirected_content_is_discarded(
    liar: HostileServer, decoy: HostileServer, tmp_path: Path, size: int
) -> None:
    liar.status, liar.headers = 307, {"Location": f"{decoy.url}/latest/meta-data/"}
    decoy.body = lambda path: "x" * size
    listed = S3Object(Location("data", "key"), "key", size, "e")
    with pytest.raises(TrainerError) as caught:
        download_objects(S3(Storage(endpoint=liar.url)), [listed], tmp_path, DATA_ERRORS, lambda _: None)
    assert caught.value.reason in (Reason.STORAGE_CORRUPT, Reason.STORAGE_UNREACHABLE)
    assert decoy.signed_count == 0
    assert not (tmp_path / "key").exists()


def test_read_endless_object_is_truncated(liar: HostileServer) -> None:
    liar.body = lambda path: "x" * 2**25
    assert len(read_object(S3(Storage(endpoint=liar.url)), Location.parse("s3://data/manifest.json")) or b"") == 2**24


METADATA = {
    "plain": "169.254.169.254",
    "decimal": "2852039166",
    "hexadecimal": "0xa9fea9fe",
    "octal": "0251.0376.0251.0376",
    "mixed": "0xa9.254.0251.254",
    "two parts": "169.16689662",
    "with a port": "169.254.169.254:80",
    "full-width digits": "\uff11\uff16\uff19.254.169.254",
    "ECS": "169.254.170.2",
    "IPv6 of AWS": "[fd00:ec2::254]",
    "IPv6 of Google": "[fd20:ce::254]",
    "IPv4 in IPv6": "[::ffff:169.254.169.254]",
    "IPv4 in IPv6, hexadecimal": "[::ffff:a9fe:a9fe]",
    "NAT64": "[64:ff9b::a9fe:a9fe]",
    "link-local": "[fe80::1]",
    "Alibaba": "100.100.100.200",
    "Azure": "168.63.129.16",
}


@pytest.mark.parametrize("host", METADATA.values(), ids=METADATA)
def test_endpoint_metadata_address_is_refused(credentials: Callable[..., Path], host: str) -> None:
    credentials("id", "secret-canary")
    with pytest.raises(TrainerError, match="cloud metadata address or link-local address") as caught:
        S3(Storage(endpoint=f"http://{host}")).bucket("data")
    assert caught.value.reason is Reason.CONFIG_INVALID


NAMES: dict[str, tuple[str, Literal["path", "virtual"]]] = {
    "the endpoint's": ("harmless.test", "path"),
    "the bucket's": ("data.harmless.test", "virtual"),
}


@pytest.mark.parametrize(("name", "addressing"), NAMES.values(), ids=NAMES)
def test_endpoint_name_resolving_to_metadata_is_refused(
    credentials: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    addressing: Literal["path", "virtual"],
) -> None:
    credentials("id", "secret-canary")
    real = socket.getaddrinfo
    addresses = {name: "169.254.169.254"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: real(addresses.get(host, "127.0.0.1"), *rest, **more)
    )
    with pytest.raises(TrainerError, match="cloud metadata address or link-local address") as caught:
        S3(Storage(endpoint="http://harmless.test", addressing=addressing)).bucket("data")
    assert caught.value.reason is Reason.CONFIG_INVALID


@pytest.mark.parametrize("status", [200, 400, 403, 404, 418])
def test_endpoint_not_s3_answer_is_not_quoted(liar: HostileServer, status: int) -> None:
    liar.status = status
    for uri in ("s3://data/prefix/", "s3://data/key.jsonl"):
        with pytest.raises(TrainerError) as caught:
            find_objects(S3(Storage(endpoint=liar.url)), Location.parse(uri), DATA_ERRORS)
        assert "canary" not in caught.value.message
        assert caught.value.reason is not Reason.INTERNAL_ERROR


# --- the environment


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_CONFIG_FILE"])
@pytest.mark.s3
def test_s3_environment_endpoint_is_ignored(
    s3: S3Server, decoy: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "config").write_text(
        f"[default]\nendpoint_url = {decoy.url}\ns3 =\n    preferred_transfer_client = crt\n"
    )
    monkeypatch.setenv(name, str(tmp_path / "config") if name == "AWS_CONFIG_FILE" else decoy.url)
    connection = S3(s3.storage)
    at = Location.parse(f"s3://data/{tmp_path.name}.txt")
    put_bytes(connection, at, b"hello")
    assert (
        download_objects(
            connection, find_objects(connection, at, DATA_ERRORS), tmp_path / "target", DATA_ERRORS, lambda _: None
        )[0].size
        == 5
    )
    assert connection.bucket("data").endpoint == s3.endpoint
    assert decoy.requests == []
    assert not {"awscrt.s3", "boto3.crt", "s3transfer.crt"}.intersection(sys.modules)
