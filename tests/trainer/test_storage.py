"""S3 as the trainer uses it, against a real server: what is found, what arrives, and what every failure says."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import obstore
import pytest
from tests.trainer.faulty_proxy import Fault

from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    DATA,
    MODEL,
    S3,
    InputFile,
    Location,
    check_space,
    download,
    find,
    name_problem,
    put_bytes,
    put_file,
    put_if_absent,
    read,
    size_of,
)
from finetune_trainer.storage.listing import S3Object

if TYPE_CHECKING:
    from tests.trainer.faulty_proxy import FaultyProxy
    from tests.trainer.s3_server import S3Server

SECRET = "test-secret-canary"


def found(server: S3Server, uri: str) -> list[str]:
    return [each.location.key for each in find(S3(server.storage), Location.parse(uri), DATA)]


def fetch(s3: S3, objects: list[S3Object], target: Path) -> list[InputFile]:
    return download(s3, objects, target, DATA, lambda _: None)


# --- what a URI means


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("one.jsonl", ["one.jsonl"]),
        ("deep/", ["deep/a.jsonl", "deep/b.txt", "deep/er/c.jsonl"]),
        ("deep/*", ["deep/a.jsonl", "deep/b.txt"]),
        ("*.jsonl", ["one.jsonl", "x1.jsonl", "x22.jsonl"]),
        ("**/*.jsonl", ["deep/a.jsonl", "deep/er/c.jsonl", "one.jsonl", "x1.jsonl", "x22.jsonl"]),
        ("deep/**/*.jsonl", ["deep/a.jsonl", "deep/er/c.jsonl"]),
        ("deep/**", ["deep/a.jsonl", "deep/b.txt", "deep/er/c.jsonl"]),
        ("x?.jsonl", ["x1.jsonl"]),
        ("deep/[ab].jsonl*", ["deep/[ab].jsonl"]),
    ],
)
@pytest.mark.s3
def test_find(s3: S3Server, pattern: str, expected: list[str]) -> None:
    names = {name for name in expected if "[" in name}
    for name in ["one.jsonl", "x1.jsonl", "x22.jsonl", "deep/a.jsonl", "deep/b.txt", "deep/er/c.jsonl", *names]:
        s3.put(f"s3://data/glob-{len(names)}/{name}", b"{}")
    prefix = f"glob-{len(names)}/"
    assert found(s3, f"s3://data/{prefix}{pattern}") == [prefix + name for name in expected]


@pytest.mark.s3
def test_find_tells_size_and_etag_and_names_below_the_uri(s3: S3Server) -> None:
    s3.put("s3://data/named/a/b.jsonl", b"12345")
    etag = hashlib.md5(b"12345").hexdigest()
    for uri, name in [("s3://data/named/**", "a/b.jsonl"), ("s3://data/named/a/b.jsonl", "b.jsonl")]:
        (only,) = find(S3(s3.storage), Location.parse(uri), DATA)
        assert (only.name, only.size, only.etag, only.uri) == (name, 5, etag, "s3://data/named/a/b.jsonl")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/abs", "a//b", "./x", "a/.", "a\\..\\x", "nul\0", "x" * 256, ""],
)
def test_names_that_would_escape_are_refused(name: str, tmp_path: Path, credentials: Callable[..., Path]) -> None:
    credentials("id", SECRET)
    assert name_problem(name)
    planted = S3Object(Location("data", "p/" + name), name, 1, "e")
    with pytest.raises(TrainerError) as refused:  # before any request: the endpoint does not exist
        download(S3(Storage(endpoint="http://127.0.0.1:9")), [planted], tmp_path / "target", MODEL, lambda _: None)
    assert refused.value.reason is Reason.MODEL_INVALID
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["a", "a/b.jsonl", "..a/b..", "uni-é漢.txt", "sp ace+%2e%2e.txt", "x" * 255])
def test_names_that_are_fine(name: str) -> None:
    assert name_problem(name) is None


def test_an_object_that_is_also_a_folder_is_refused(tmp_path: Path, credentials: Callable[..., Path]) -> None:
    credentials("id", SECRET)
    planted = [S3Object(Location("data", name), name, 1, "e") for name in ("a", "a/b")]
    with pytest.raises(TrainerError, match="a disk cannot hold both"):
        fetch(S3(Storage(endpoint="http://127.0.0.1:9")), planted, tmp_path)


# --- bytes in


@pytest.mark.s3
def test_many_small_and_one_large_object_arrive_whole(s3: S3Server, tmp_path: Path) -> None:
    contents = {f"n/{number:03}.bin": random.Random(number).randbytes(number) for number in range(300)}
    contents["large é+ %41.bin"] = random.Random(0).randbytes(40 * 2**20 + 12345)
    for name, content in contents.items():
        s3.put(f"s3://data/many/{name}", content)
    seen: list[int] = []
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/many/"), DATA)
    files = download(connection, objects, tmp_path, DATA, seen.append)
    assert [file.uri for file in files] == [f"s3://data/many/{name}" for name in sorted(contents)]
    for file, (name, content) in zip(files, sorted(contents.items()), strict=True):
        assert file.path == tmp_path / name
        assert file.path.read_bytes() == content
        assert (file.sha256, file.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert sum(seen) == sum(len(content) for content in contents.values())
    assert len(list(tmp_path.rglob("*.*"))) == len(contents)  # no partial file is left


@pytest.mark.parametrize("size", [10, 20 * 2**20])
@pytest.mark.s3
def test_an_object_that_changed_after_it_was_listed(s3: S3Server, tmp_path: Path, size: int) -> None:
    s3.put("s3://data/changing.bin", b"a" * size)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/changing.bin"), DATA)
    s3.put("s3://data/changing.bin", b"b" * size)
    with pytest.raises(TrainerError, match=r"changing\.bin .*it changed while it was read") as error:
        fetch(connection, objects, tmp_path / "target")
    assert error.value.reason is Reason.STORAGE_CORRUPT
    assert not (tmp_path / "target" / "changing.bin").exists()


@pytest.mark.s3
def test_one_failure_ends_the_others_and_is_the_one_told(s3: S3Server, tmp_path: Path) -> None:
    for number in range(40):
        s3.put(f"s3://data/failing/{number:02}", b"x" * 100)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/failing/"), DATA)
    s3.client.delete_object(Bucket="data", Key="failing/07")
    with pytest.raises(TrainerError, match=r"failing/07 .*there is no such object"):
        fetch(connection, objects, tmp_path)


def test_inputs_that_do_not_fit_are_refused_early(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"the inputs need 1048576\.0 GiB, .*compute\.scratch") as error:
        check_space(tmp_path, 2**50)
    assert error.value.reason is Reason.DISK_FULL


@pytest.mark.parametrize("size", [1000, 10 * 2**20])
@pytest.mark.s3
def test_cut_answers_are_asked_for_again(s3: S3Server, tmp_path: Path, proxy: FaultyProxy, size: int) -> None:
    content = random.Random(1).randbytes(size)
    s3.put("s3://data/cut.bin", content)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/cut.b*"), DATA)
    proxy.cuts = 2
    (file,) = fetch(connection, objects, tmp_path)
    assert proxy.cuts == 0
    assert file.path.read_bytes() == content


@pytest.mark.s3
def test_answers_that_are_always_cut(s3: S3Server, tmp_path: Path, proxy: FaultyProxy) -> None:
    s3.put("s3://data/cut-always.bin", b"x" * 2**20)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/cut-always.b*"), DATA)
    proxy.cuts = 1000
    with pytest.raises(
        TrainerError, match=r"cut-always\.bin .*the connection ended before all bytes had come"
    ) as error:
        fetch(connection, objects, tmp_path)
    proxy.cuts = 0
    assert error.value.reason is Reason.STORAGE_CORRUPT


FAULTS = {
    "busy": Fault("503", times=2),
    "broken": Fault("500", times=2),
    "connection reset": Fault("reset", times=2),
    "says nothing for 20 s": Fault("stall"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.s3
def test_a_store_in_trouble_is_asked_again(s3: S3Server, tmp_path: Path, proxy: FaultyProxy, fault: Fault) -> None:
    content = random.Random(2).randbytes(40 * 2**20)
    s3.put("s3://data/trouble.bin", content)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/trouble.b*"), DATA)
    proxy.faults = [replace(fault, key="trouble.bin")]
    (file,) = fetch(connection, objects, tmp_path)
    assert proxy.faults[0].times == 0
    assert file.path.read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [1000, 40 * 2**20], ids=["whole", "in ranges"])
@pytest.mark.s3
def test_an_error_that_comes_as_a_200_is_not_taken_for_the_object(
    s3: S3Server, tmp_path: Path, proxy: FaultyProxy, size: int
) -> None:
    s3.put("s3://data/fine.bin", b"x" * size)
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/fine.b*"), DATA)
    proxy.faults = [Fault("200", key="fine.bin", times=100)]
    with pytest.raises(TrainerError, match=r"fine\.bin") as error:
        fetch(connection, objects, tmp_path)
    assert error.value.reason in (Reason.STORAGE_CORRUPT, Reason.STORAGE_UNREACHABLE)
    assert not (tmp_path / "fine.bin").exists()


@pytest.mark.s3
@pytest.mark.timeout(180)
def test_ten_thousand_objects_are_listed(s3: S3Server) -> None:
    connection = S3(s3.storage)
    store = connection.bucket("data").store
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: obstore.put(store, f"10k/{number:05}.jsonl", b"{}"), range(10_000)))
    objects = find(connection, Location.parse("s3://data/10k/*.jsonl"), DATA)
    assert [each.name for each in objects] == [f"{number:05}.jsonl" for number in range(10_000)]
    assert {(each.size, len(each.etag)) for each in objects} == {(2, 32)}


# --- bytes out


@pytest.mark.s3
def test_an_upload_that_fails_half_way_leaves_nothing(s3: S3Server, tmp_path: Path, proxy: FaultyProxy) -> None:
    path, location = tmp_path / "file", Location.parse(f"s3://results/{tmp_path.name}/half")
    path.write_bytes(b"x" * 40 * 2**20)
    proxy.faults = [Fault("400", "PUT", "partNumber=4")]
    with pytest.raises(TrainerError, match="the session token is wrong or has expired") as error:
        put_file(S3(s3.storage), location, path)
    assert error.value.reason is Reason.AUTH_FAILED
    assert s3.keys(str(location)) == []
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="results", Prefix=location.key)


@pytest.mark.s3
def test_an_upload_whose_end_comes_back_as_a_200_with_an_error_is_ended_again(
    s3: S3Server, tmp_path: Path, proxy: FaultyProxy
) -> None:
    path, location = tmp_path / "file", Location.parse(f"s3://results/{tmp_path.name}/ended")
    path.write_bytes(b"x" * 40 * 2**20)
    proxy.faults = [Fault("200", "POST", "uploadId=")]
    digest = put_file(S3(s3.storage), location, path)
    assert proxy.faults[0].times == 0
    assert hashlib.sha256(s3.get(str(location))).hexdigest() == digest


@pytest.mark.parametrize("checksums", ["auto", "whenRequired"])
@pytest.mark.s3
def test_files_are_uploaded_whole(s3: S3Server, tmp_path: Path, checksums: Literal["auto", "whenRequired"]) -> None:
    connection = S3(s3.storage.model_copy(update={"checksums": checksums}))
    for size in (0, 10, 40 * 2**20 + 1):
        path = tmp_path / "file"
        path.write_bytes(random.Random(size).randbytes(size))
        location = Location.parse(f"s3://results/{checksums}/{size} é")
        put_file(connection, location, path)
        assert size_of(connection, location) == size
        assert s3.get(str(location)) == path.read_bytes()
    head = s3.client.head_object(Bucket="results", Key=f"{checksums}/10 é", ChecksumMode="ENABLED")
    assert ("ChecksumSHA256" in head) == (checksums == "auto")


@pytest.mark.s3
def test_of_many_writers_one_wins(s3: S3Server) -> None:
    connection = S3(s3.storage)
    location = Location.parse("s3://results/race/manifest.json")
    wins: list[int] = []

    def write(number: int) -> None:
        if put_if_absent(connection, location, str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert s3.get(str(location)) == str(wins[0]).encode()


@pytest.mark.s3
def test_read(s3: S3Server) -> None:
    connection = S3(s3.storage)
    location = Location.parse("s3://results/note.json")
    assert read(connection, location) is None
    put_bytes(connection, location, b"1")
    put_bytes(connection, location, b"2")
    assert read(connection, location) == b"2"


# --- where requests go


@pytest.mark.parametrize("addressing", ["virtual", "path", "auto"])
@pytest.mark.s3
def test_addressing(
    s3: S3Server, tmp_path: Path, addressing: Literal["auto", "path", "virtual"], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/addressed.txt", b"hello")
    storage = Storage(endpoint=s3.endpoint, addressing=addressing)
    if addressing == "virtual":  # names of hosts that no DNS knows: the server is its own proxy
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, s3.endpoint)
        storage = Storage(endpoint="http://s3.test", addressing=addressing)
    connection = S3(storage)
    objects = find(connection, Location.parse("s3://data/addressed.t*"), DATA)
    assert fetch(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"
    assert ("data.s3.test" in connection.bucket("data").store.config["endpoint"]) == (addressing == "virtual")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.s3
def test_the_environment_does_not_redirect_a_stated_endpoint(
    s3: S3Server, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/stated.txt", b"hello")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    connection = S3(s3.storage)
    objects = find(connection, Location.parse("s3://data/stated.txt"), DATA)
    assert fetch(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.s3
def test_without_a_stated_endpoint_the_environments_counts_for_both_libraries(
    s3: S3Server, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/unstated.txt", b"hello")
    monkeypatch.setenv(variable, s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    connection = S3(Storage())
    objects = find(connection, Location.parse("s3://data/unstated.t*"), DATA)
    assert fetch(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"
    assert connection.bucket("data").store.config["endpoint"] == connection.bucket("data").endpoint == s3.endpoint


# --- what failures say


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        ("s3://no-such-bucket/key", Reason.DATA_NOT_FOUND, "the bucket does not exist"),
        ("s3://no-such-bucket/prefix/", Reason.DATA_NOT_FOUND, "the bucket does not exist"),
        ("s3://data/no-such-key", Reason.DATA_NOT_FOUND, "there is no such object"),
        ("s3://data/no-such-prefix/", Reason.DATA_NOT_FOUND, "no object has this prefix"),
        ("s3://data/no-such/*.jsonl", Reason.DATA_NOT_FOUND, "no object matches this pattern"),
        ("s3://data/fol", Reason.DATA_NOT_FOUND, "end the URI with '/'"),
    ],
)
@pytest.mark.s3
def test_what_is_not_there(s3: S3Server, uri: str, reason: Reason, message: str) -> None:
    s3.put("s3://data/folder/key", b"x")
    check_failure(s3.storage, uri, reason, message)


@pytest.mark.parametrize("uri", ["s3://data/key", "s3://data/prefix/", "s3://no-such-bucket/key"])
@pytest.mark.parametrize(
    ("key_id", "secret", "message"),
    [
        ("nobody", SECRET, "does not know this access key id"),
        ("test-key-id", "wrong-canary", "the secret key does not fit the access key id"),
        (None, SECRET, "the credentials Secret has no key AWS_ACCESS_KEY_ID"),
        ("test-key-id", None, "the credentials Secret has no key AWS_SECRET_ACCESS_KEY"),
        ("test-key-id", "", "the credentials Secret has no key AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.s3
def test_wrong_credentials(
    s3: S3Server, credentials: Callable[..., Path], key_id: str | None, secret: str | None, message: str, uri: str
) -> None:
    credentials(key_id, secret)
    check_failure(s3.storage, uri, Reason.AUTH_FAILED, message)


@pytest.mark.s3
def test_wrong_credentials_are_told_when_writing_and_reading_too(
    s3: S3Server, credentials: Callable[..., Path]
) -> None:
    credentials("nobody", SECRET)
    for attempt in (lambda s3, at: put_bytes(s3, at, b"x"), read, lambda s3, at: put_if_absent(s3, at, b"x")):
        with pytest.raises(TrainerError, match="does not know this access key id") as error:
            attempt(S3(s3.storage), Location.parse("s3://results/x"))
        assert error.value.reason is Reason.AUTH_FAILED


@pytest.mark.s3
def test_a_secret_without_keys_never_falls_back_to_another_identity(
    s3: S3Server, credentials: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    credentials(None, None)
    with pytest.raises(TrainerError, match="has no key AWS_ACCESS_KEY_ID"):
        S3(s3.storage)
    monkeypatch.delenv(S3_CREDENTIALS_DIR_ENV)
    assert read(S3(s3.storage), Location.parse("s3://data/never")) is None  # by hand, that identity is fine


def test_nobody_to_sign_as(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")] + [S3_CREDENTIALS_DIR_ENV]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(TrainerError, match=r"no S3 credentials .*storage\.credentialsSecretRef") as error:
        S3(Storage())
    assert error.value.reason is Reason.AUTH_FAILED
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(TrainerError, match="missing") as error:
        S3(Storage())
    assert error.value.reason is Reason.AUTH_FAILED


@pytest.mark.s3
def test_a_user_without_permission(s3: S3Server, credentials: Callable[..., Path]) -> None:
    s3.add_user("stranger", "stranger-secret")
    s3.put("s3://data/private/key", b"x")
    credentials("stranger", "stranger-secret")
    for uri in ("s3://data/private/key", "s3://data/private/"):
        check_failure(s3.storage, uri, Reason.ACCESS_DENIED, "may not do this")
    with pytest.raises(TrainerError) as error:
        put_bytes(S3(s3.storage), Location.parse("s3://results/x"), b"x")
    assert error.value.reason is Reason.ACCESS_DENIED


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"],
    ids=["refused", "dns", "tls"],
)
def test_an_endpoint_that_does_not_answer(credentials: Callable[..., Path], endpoint: str) -> None:
    credentials("test-key-id", SECRET)
    begun = time.monotonic()
    for uri in ("s3://data/key", "s3://data/prefix/"):
        check_failure(Storage(endpoint=endpoint), uri, Reason.STORAGE_UNREACHABLE, "check storage.endpoint")
    with pytest.raises(TrainerError, match=r"check storage\.endpoint") as error:
        put_bytes(S3(Storage(endpoint=endpoint)), Location.parse("s3://results/x"), b"x")
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
    assert time.monotonic() - begun < 45


@pytest.mark.s3
def test_tls_to_a_server_that_speaks_plain_http(s3: S3Server) -> None:
    storage = Storage(endpoint=s3.endpoint.replace("http://", "https://"))
    check_failure(storage, "s3://data/key", Reason.STORAGE_UNREACHABLE, "AWS_CA_BUNDLE")


@pytest.mark.s3
def test_a_ca_bundle_that_cannot_be_read(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    check_failure(s3.storage, "s3://data/key", Reason.CONFIG_INVALID, "/no/such/file")


def check_failure(storage: Storage, uri: str, reason: Reason, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        find(S3(storage), Location.parse(uri), DATA)
    assert error.value.reason is reason, error.value.message
    assert message in error.value.message
    assert "canary" not in error.value.message
    if "Secret" not in message and "CA_BUNDLE" not in message and reason is not Reason.CONFIG_INVALID:
        assert uri in error.value.message
        assert str(storage.endpoint) in error.value.message
    if reason is Reason.DATA_NOT_FOUND:
        with pytest.raises(TrainerError) as error:
            find(S3(storage), Location.parse(uri), MODEL)
        assert error.value.reason is Reason.MODEL_NOT_FOUND
