"""Errors of a store have a reason and name the location, and never contain a secret."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.s3_server import SECRET

from finetune_trainer.contract import S3_CREDENTIALS_DIR_ENV, Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    DATA_ERRORS,
    MODEL_ERRORS,
    S3,
    Location,
    find_objects,
    put_bytes,
    put_if_absent,
    read_object,
)

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        ("s3://no-such-bucket/key", Reason.DATA_NOT_FOUND, "the bucket does not exist"),
        ("s3://no-such-bucket/prefix/", Reason.DATA_NOT_FOUND, "the bucket does not exist"),
        ("s3://data/no-such-key", Reason.DATA_NOT_FOUND, "there is no such object"),
        ("s3://data/no-such-prefix/", Reason.DATA_NOT_FOUND, "no object has this prefix"),
        ("s3://data/no-such/*.jsonl", Reason.DATA_NOT_FOUND, "no object matches this pattern"),
        ("s3://data/folder", Reason.DATA_NOT_FOUND, "end the URI with '/'"),
        ("s3://data/fol", Reason.DATA_NOT_FOUND, "there is no such object; check the URI"),
        ("s3://data/folder/Key", Reason.DATA_NOT_FOUND, "there is no such object; is it folder/key?"),
        ("s3://data/folder/trian.jsonl", Reason.DATA_NOT_FOUND, "is it folder/train.jsonl?"),
        ("s3://data/folder/[ab].jsonl", Reason.DATA_NOT_FOUND, "only *, ? and ** are wildcards"),
    ],
)
@pytest.mark.s3
def test_find_missing_object_is_not_found(s3: S3Server, uri: str, reason: Reason, message: str) -> None:
    for name in ("key", "train.jsonl"):
        s3.put(f"s3://data/folder/{name}", b"x")
    assert_find_fails(s3.storage, uri, reason, message)


@pytest.mark.parametrize("uri", ["s3://data/key", "s3://data/prefix/", "s3://no-such-bucket/key"])
@pytest.mark.parametrize(
    ("key_id", "secret", "message"),
    [
        ("nobody", SECRET, "does not know this access key id"),
        ("test-key-id", "wrong-canary", "the secret key does not match the access key id"),
        (None, SECRET, "the credentials Secret has no key AWS_ACCESS_KEY_ID"),
        ("test-key-id", None, "the credentials Secret has no key AWS_SECRET_ACCESS_KEY"),
        ("test-key-id", "", "the credentials Secret has no key AWS_SECRET_ACCESS_KEY"),
    ],
)
@pytest.mark.s3
def test_find_wrong_credentials_are_auth_failed(
    s3: S3Server, credentials: Callable[..., Path], key_id: str | None, secret: str | None, message: str, uri: str
) -> None:
    credentials(key_id, secret)
    assert_find_fails(s3.storage, uri, Reason.AUTH_FAILED, message)


@pytest.mark.s3
def test_read_and_put_wrong_credentials_are_auth_failed(s3: S3Server, credentials: Callable[..., Path]) -> None:
    credentials("nobody", SECRET)
    for attempt in (lambda s3, at: put_bytes(s3, at, b"x"), read_object, lambda s3, at: put_if_absent(s3, at, b"x")):
        with pytest.raises(TrainerError, match="does not know this access key id") as error:
            attempt(S3(s3.storage), Location.parse("s3://results/x"))
        assert error.value.reason is Reason.AUTH_FAILED


@pytest.mark.s3
def test_credentials_empty_secret_never_falls_back(
    s3: S3Server, credentials: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    credentials(None, None)
    with pytest.raises(TrainerError, match="has no key AWS_ACCESS_KEY_ID"):
        S3(s3.storage).bucket("data")
    monkeypatch.delenv(S3_CREDENTIALS_DIR_ENV)
    assert read_object(S3(s3.storage), Location.parse("s3://data/never")) is None  # by hand, that identity is fine


def test_credentials_missing_are_auth_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")] + [S3_CREDENTIALS_DIR_ENV]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(TrainerError, match=r"no S3 credentials .*storage\.credentialsSecretRef") as error:
        S3(Storage()).bucket("data")
    assert error.value.reason is Reason.AUTH_FAILED
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(TrainerError, match="missing") as error:
        S3(Storage()).bucket("data")
    assert error.value.reason is Reason.AUTH_FAILED


@pytest.mark.s3
def test_find_and_put_without_permission_are_access_denied(s3: S3Server, credentials: Callable[..., Path]) -> None:
    s3.add_user("stranger", "stranger-secret")
    s3.put("s3://data/private/key", b"x")
    credentials("stranger", "stranger-secret")
    for uri in ("s3://data/private/key", "s3://data/private/"):
        assert_find_fails(s3.storage, uri, Reason.ACCESS_DENIED, "lack the permission")
    with pytest.raises(TrainerError) as error:
        put_bytes(S3(s3.storage), Location.parse("s3://results/x"), b"x")
    assert error.value.reason is Reason.ACCESS_DENIED


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"],
    ids=["refused", "dns", "tls"],
)
def test_endpoint_unreachable_is_storage_unreachable(credentials: Callable[..., Path], endpoint: str) -> None:
    credentials("test-key-id", SECRET)
    started_at = time.monotonic()
    for uri in ("s3://data/key", "s3://data/prefix/"):
        assert_find_fails(Storage(endpoint=endpoint), uri, Reason.STORAGE_UNREACHABLE, "check storage.endpoint")
    with pytest.raises(TrainerError, match=r"check storage\.endpoint") as error:
        put_bytes(S3(Storage(endpoint=endpoint)), Location.parse("s3://results/x"), b"x")
    assert error.value.reason is Reason.STORAGE_UNREACHABLE
    assert time.monotonic() - started_at < 45


@pytest.mark.s3
def test_endpoint_tls_to_plain_http_is_explained(s3: S3Server) -> None:
    storage = Storage(endpoint=s3.endpoint.replace("http://", "https://"))
    assert_find_fails(storage, "s3://data/key", Reason.STORAGE_UNREACHABLE, "AWS_CA_BUNDLE")


@pytest.mark.s3
def test_ca_bundle_unreadable_is_config_invalid(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/file")
    assert_find_fails(s3.storage, "s3://data/key", Reason.CONFIG_INVALID, "/no/such/file")


def assert_find_fails(storage: Storage, uri: str, reason: Reason, message: str) -> None:
    with pytest.raises(TrainerError) as error:
        find_objects(S3(storage), Location.parse(uri), DATA_ERRORS)
    assert error.value.reason is reason, error.value.message
    assert message in error.value.message
    assert "canary" not in error.value.message
    if "Secret" not in message and "CA_BUNDLE" not in message and reason is not Reason.CONFIG_INVALID:
        assert uri in error.value.message
        assert str(storage.endpoint) in error.value.message
    if reason is Reason.DATA_NOT_FOUND:
        with pytest.raises(TrainerError) as error:
            find_objects(S3(storage), Location.parse(uri), MODEL_ERRORS)
        assert error.value.reason is Reason.MODEL_NOT_FOUND
