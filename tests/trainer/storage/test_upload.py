"""Tests of the objects in a store after an upload, also after faults."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from tests.support.trainer.faulty_proxy import Fault

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3, Location, get_object_size, put_bytes, put_file, put_if_absent, read_object

if TYPE_CHECKING:
    from tests.support.trainer.faulty_proxy import FaultyProxy
    from tests.support.trainer.s3_server import S3Server


@pytest.mark.s3
def test_put_file_failed_upload_leaves_nothing(s3: S3Server, tmp_path: Path, proxy: FaultyProxy) -> None:
    path, location = tmp_path / "file", Location.parse(f"s3://results/{tmp_path.name}/half")
    path.write_bytes(b"x" * 40 * 2**20)
    proxy.faults = [Fault("400", "PUT", "partNumber=4")]
    with pytest.raises(TrainerError, match="the session token is wrong or has expired") as error:
        put_file(S3(s3.storage), location, path)
    assert error.value.reason is Reason.AUTH_FAILED
    assert s3.list_keys(str(location)) == []
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket="results", Prefix=location.key)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("400", "DELETE", "uploadId=")],
        [Fault("400", "DELETE", "uploadId=", times=3)],
        [Fault("400", "DELETE", "uploadId="), Fault("delay", "PUT", "partNumber=2")],
    ],
    ids=["abort refused once", "abort refused three times", "part in flight"],
)
@pytest.mark.s3
def test_put_file_failed_abort_is_retried(
    s3: S3Server, tmp_path: Path, proxy: FaultyProxy, faults: list[Fault]
) -> None:
    path, location = tmp_path / "file", Location.parse(f"s3://results/{tmp_path.name}/half")
    path.write_bytes(b"x" * 40 * 2**20)
    other = s3.client.create_multipart_upload(Bucket="results", Key=location.key + "-of-another")["UploadId"]
    proxy.faults = [Fault("400", "PUT", "partNumber=4"), *(replace(fault) for fault in faults)]
    with pytest.raises(TrainerError, match="the session token is wrong or has expired"):
        put_file(S3(s3.storage), location, path)
    time.sleep(2)  # the part that was held back has come to its end
    unfinished = s3.client.list_multipart_uploads(Bucket="results", Prefix=location.key)["Uploads"]
    assert [upload["UploadId"] for upload in unfinished] == [other]


@pytest.mark.s3
def test_put_file_completion_error_with_200_is_retried(s3: S3Server, tmp_path: Path, proxy: FaultyProxy) -> None:
    path, location = tmp_path / "file", Location.parse(f"s3://results/{tmp_path.name}/ended")
    path.write_bytes(b"x" * 40 * 2**20)
    proxy.faults = [Fault("200", "POST", "uploadId=")]
    digest = put_file(S3(s3.storage), location, path)
    assert proxy.faults[0].times == 0
    assert hashlib.sha256(s3.get(str(location))).hexdigest() == digest


@pytest.mark.parametrize("checksums", ["auto", "whenRequired"])
@pytest.mark.s3
def test_put_file_uploads_complete_file(
    s3: S3Server, tmp_path: Path, checksums: Literal["auto", "whenRequired"]
) -> None:
    connection = S3(s3.storage.model_copy(update={"checksums": checksums}))
    for size in (0, 10, 40 * 2**20 + 1):
        path = tmp_path / "file"
        path.write_bytes(random.Random(size).randbytes(size))
        location = Location.parse(f"s3://results/{checksums}/{size} é")
        put_file(connection, location, path)
        assert get_object_size(connection, location) == size
        assert s3.get(str(location)) == path.read_bytes()
    head = s3.client.head_object(Bucket="results", Key=f"{checksums}/10 é", ChecksumMode="ENABLED")
    assert ("ChecksumSHA256" in head) == (checksums == "auto")


@pytest.mark.s3
def test_put_if_absent_concurrent_writers_one_wins(s3: S3Server) -> None:
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
def test_read_returns_latest_or_none(s3: S3Server) -> None:
    connection = S3(s3.storage)
    location = Location.parse("s3://results/note.json")
    assert read_object(connection, location) is None
    put_bytes(connection, location, b"1")
    put_bytes(connection, location, b"2")
    assert read_object(connection, location) == b"2"
