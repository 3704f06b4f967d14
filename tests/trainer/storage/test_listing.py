"""Tests of listing with a real server: the objects that a URI matches, and the names that are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
import pytest
from tests.support.trainer.data_download import download_data
from tests.support.trainer.s3_server import SECRET

from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import (
    DATA_ERRORS,
    MODEL_ERRORS,
    S3,
    Location,
    download_objects,
    find_name_problem,
    find_objects,
)
from finetune_trainer.storage.listing import S3Object

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server


def find_keys(server: S3Server, uri: str) -> list[str]:
    return [item.location.key for item in find_objects(S3(server.storage), Location.parse(uri), DATA_ERRORS)]


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
def test_find_pattern_gives_matching_keys(s3: S3Server, pattern: str, expected: list[str]) -> None:
    names = {name for name in expected if "[" in name}
    for name in ["one.jsonl", "x1.jsonl", "x22.jsonl", "deep/a.jsonl", "deep/b.txt", "deep/er/c.jsonl", *names]:
        s3.put(f"s3://data/glob-{len(names)}/{name}", b"{}")
    prefix = f"glob-{len(names)}/"
    assert find_keys(s3, f"s3://data/{prefix}{pattern}") == [prefix + name for name in expected]


@pytest.mark.s3
def test_find_gives_size_etag_and_relative_name(s3: S3Server) -> None:
    s3.put("s3://data/named/a/b.jsonl", b"12345")
    etag = hashlib.md5(b"12345").hexdigest()
    for uri, name in [("s3://data/named/**", "a/b.jsonl"), ("s3://data/named/a/b.jsonl", "b.jsonl")]:
        (only,) = find_objects(S3(s3.storage), Location.parse(uri), DATA_ERRORS)
        assert (only.name, only.size, only.etag, only.uri) == (name, 5, etag, "s3://data/named/a/b.jsonl")


@pytest.mark.s3
@pytest.mark.timeout(180)
def test_find_ten_thousand_objects_are_listed(s3: S3Server) -> None:
    connection = S3(s3.storage)
    store = connection.bucket("data").store
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: obstore.put(store, f"10k/{number:05}.jsonl", b"{}"), range(10_000)))
    objects = find_objects(connection, Location.parse("s3://data/10k/*.jsonl"), DATA_ERRORS)
    assert [item.name for item in objects] == [f"{number:05}.jsonl" for number in range(10_000)]
    assert {(item.size, len(item.etag)) for item in objects} == {(2, 32)}


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/abs", "a//b", "./x", "a/.", "a\\..\\x", "nul\0", "x" * 256, ""],
)
def test_name_problem_escaping_name_is_refused(name: str, tmp_path: Path, credentials: Callable[..., Path]) -> None:
    credentials("id", SECRET)
    assert find_name_problem(name)
    planted = S3Object(Location("data", "p/" + name), name, 1, "e")
    with pytest.raises(TrainerError) as refused:  # before any request: the endpoint does not exist
        download_objects(
            S3(Storage(endpoint="http://127.0.0.1:9")), [planted], tmp_path / "target", MODEL_ERRORS, lambda _: None
        )
    assert refused.value.reason is Reason.MODEL_INVALID
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["a", "a/b.jsonl", "..a/b..", "uni-é漢.txt", "sp ace+%2e%2e.txt", "x" * 255])
def test_name_problem_valid_name_is_none(name: str) -> None:
    assert find_name_problem(name) is None


def test_download_object_that_is_also_folder_is_refused(tmp_path: Path, credentials: Callable[..., Path]) -> None:
    credentials("id", SECRET)
    planted = [S3Object(Location("data", name), name, 1, "e") for name in ("a", "a/b")]
    with pytest.raises(TrainerError, match="a file system cannot hold both"):
        download_data(S3(Storage(endpoint="http://127.0.0.1:9")), planted, tmp_path)
