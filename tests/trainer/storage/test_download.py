"""Tests of downloads from stores with faults."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.data_download import download_data
from tests.support.trainer.faulty_proxy import Fault

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import DATA_ERRORS, S3, Location, download_objects, find_objects

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server


@pytest.mark.s3
def test_download_small_and_large_objects_are_complete(s3: S3Server, tmp_path: Path) -> None:
    contents = {f"n/{number:03}.bin": random.Random(number).randbytes(number) for number in range(300)}
    contents["large é+ %41.bin"] = random.Random(0).randbytes(40 * 2**20 + 12345)
    for name, content in contents.items():
        s3.put(f"s3://data/many/{name}", content)
    sizes: list[int] = []
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/many/"), DATA_ERRORS)
    files = download_objects(connection, objects, tmp_path, DATA_ERRORS, sizes.append)
    assert [file.uri for file in files] == [f"s3://data/many/{name}" for name in sorted(contents)]
    for file, (name, content) in zip(files, sorted(contents.items()), strict=True):
        assert file.path == tmp_path / name
        assert file.path.read_bytes() == content
        assert (file.sha256, file.size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert sum(sizes) == sum(len(content) for content in contents.values())
    assert len(list(tmp_path.rglob("*.*"))) == len(contents)  # no partial file is left


@pytest.mark.parametrize("size", [10, 20 * 2**20])
@pytest.mark.s3
def test_download_object_changed_after_listing_is_refused(s3: S3Server, tmp_path: Path, size: int) -> None:
    s3.put("s3://data/changing.bin", b"a" * size)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/changing.bin"), DATA_ERRORS)
    s3.put("s3://data/changing.bin", b"b" * size)
    with pytest.raises(TrainerError, match=r"changing\.bin .*it changed while it was read") as error:
        download_data(connection, objects, tmp_path / "target")
    assert error.value.reason is Reason.STORAGE_CORRUPT
    assert not (tmp_path / "target" / "changing.bin").exists()


@pytest.mark.s3
def test_download_first_failure_cancels_others(s3: S3Server, tmp_path: Path) -> None:
    for number in range(40):
        s3.put(f"s3://data/failing/{number:02}", b"x" * 100)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/failing/"), DATA_ERRORS)
    s3.client.delete_object(Bucket="data", Key="failing/07")
    with pytest.raises(TrainerError, match=r"failing/07 .*there is no such object"):
        download_data(connection, objects, tmp_path)


@pytest.mark.parametrize("size", [1000, 10 * 2**20])
@pytest.mark.s3
def test_download_truncated_answer_is_retried(s3: S3Server, tmp_path: Path, proxy: FaultyProxy, size: int) -> None:
    content = random.Random(1).randbytes(size)
    s3.put("s3://data/cut.bin", content)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/cut.b*"), DATA_ERRORS)
    proxy.truncations_left = 2
    (file,) = download_data(connection, objects, tmp_path)
    assert proxy.truncations_left == 0
    assert file.path.read_bytes() == content


@pytest.mark.s3
def test_download_always_truncated_is_storage_corrupt(s3: S3Server, tmp_path: Path, proxy: FaultyProxy) -> None:
    s3.put("s3://data/cut-always.bin", b"x" * 2**20)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/cut-always.b*"), DATA_ERRORS)
    proxy.truncations_left = 1000
    with pytest.raises(
        TrainerError, match=r"cut-always\.bin .*the connection ended before all bytes were received"
    ) as error:
        download_data(connection, objects, tmp_path)
    proxy.truncations_left = 0
    assert error.value.reason is Reason.STORAGE_CORRUPT


FAULTS = {
    "busy": Fault("503", times=2),
    "broken": Fault("500", times=2),
    "connection reset": Fault("reset", times=2),
    "sends nothing for 20 s": Fault("stall"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.s3
def test_download_transient_fault_is_retried(s3: S3Server, tmp_path: Path, proxy: FaultyProxy, fault: Fault) -> None:
    content = random.Random(2).randbytes(40 * 2**20)
    s3.put("s3://data/trouble.bin", content)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/trouble.b*"), DATA_ERRORS)
    proxy.faults = [replace(fault, key="trouble.bin")]
    (file,) = download_data(connection, objects, tmp_path)
    assert proxy.faults[0].times == 0
    assert file.path.read_bytes() == content
    assert file.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [1000, 40 * 2**20], ids=["whole", "in ranges"])
@pytest.mark.s3
def test_download_error_with_status_200_is_refused(s3: S3Server, tmp_path: Path, proxy: FaultyProxy, size: int) -> None:
    s3.put("s3://data/fine.bin", b"x" * size)
    connection = S3(s3.storage)
    objects = find_objects(connection, Location.parse("s3://data/fine.b*"), DATA_ERRORS)
    proxy.faults = [Fault("200", key="fine.bin", times=100)]
    with pytest.raises(TrainerError, match=r"fine\.bin") as error:
        download_data(connection, objects, tmp_path)
    assert error.value.reason in (Reason.STORAGE_CORRUPT, Reason.STORAGE_UNREACHABLE)
    assert not (tmp_path / "fine.bin").exists()
