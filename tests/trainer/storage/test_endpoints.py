"""Tests of the endpoints of requests: bucket addresses, and the effect of environment variables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.trainer.data_download import download_data

from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import DATA_ERRORS, S3, Location, find_objects

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server


@pytest.mark.parametrize("addressing", ["virtual", "path", "auto"])
@pytest.mark.s3
def test_endpoint_addressing_style_is_used(
    s3: S3Server, tmp_path: Path, addressing: Literal["auto", "path", "virtual"], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/addressed.txt", b"hello")
    storage = Storage(endpoint=s3.endpoint, addressing=addressing)
    if addressing == "virtual":  # the host names are in no DNS, so the server is also the proxy
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, s3.endpoint)
        storage = Storage(endpoint="http://s3.test", addressing=addressing)
    connection = S3(storage)
    objects = find_objects(connection, Location.parse("s3://data/addressed.t*"), DATA_ERRORS)
    assert download_data(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"
    assert ("data.s3.test" in connection.bucket("data").store.config["endpoint"]) == (addressing == "virtual")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.s3
def test_endpoint_stated_ignores_environment(
    s3: S3Server, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/stated.txt", b"hello")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/stated.txt"), DATA_ERRORS)
    assert download_data(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.s3
def test_endpoint_unstated_uses_environment(
    s3: S3Server, tmp_path: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("s3://data/unstated.txt", b"hello")
    monkeypatch.setenv(variable, s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    connection = S3(Storage())
    objects = find_objects(connection, Location.parse("s3://data/unstated.t*"), DATA_ERRORS)
    assert download_data(connection, objects, tmp_path)[0].path.read_bytes() == b"hello"
    assert connection.bucket("data").store.config["endpoint"] == connection.bucket("data").endpoint == s3.endpoint


@pytest.mark.parametrize(
    "settings", [{"endpoint": "http://a[b"}, {"endpoint": "http://127.0.0.1:1", "region": "x y"}], ids=["url", "region"]
)
def test_client_invalid_address_is_a_mistake_of_the_config(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    with pytest.raises(TrainerError, match=r"storage\.endpoint, or the region .* is invalid") as caught:
        S3(Storage().model_copy(update=settings)).bucket("bucket")

    assert caught.value.reason is Reason.CONFIG_INVALID
