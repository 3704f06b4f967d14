"""Reading of objects, whole and line by line, over connections that break."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer.faulty_proxy import FaultyProxy

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.storage import S3, Location, read_object
from finetune_trainer.storage.lines import parse_lines

if TYPE_CHECKING:
    from tests.support.trainer.s3_server import S3Server

pytestmark = pytest.mark.s3

LINES = [f'{{"row": {number}, "text": "{number * "x"}"}}'.encode() for number in range(1000)]


@pytest.fixture
def location(s3: S3Server, tmp_path: Path) -> Location:
    found = Location("results", f"{tmp_path.name}/lines.jsonl")
    s3.put(str(found), b"\n".join(LINES) + b"\n\n")
    return found


def test_parse_lines_returns_each_line_that_is_not_empty(s3: S3Server, location: Location) -> None:
    assert parse_lines(S3(s3.storage), location, bytes) == LINES


def test_parse_lines_after_a_broken_connection_returns_each_line_once(
    s3: S3Server, location: Location, proxy: FaultyProxy
) -> None:
    proxy.truncations_left = 1
    assert parse_lines(S3(s3.storage), location, bytes) == LINES


def test_parse_lines_broken_each_time_is_an_unreachable_store(
    s3: S3Server, location: Location, proxy: FaultyProxy
) -> None:
    proxy.truncations_left = 1000
    with pytest.raises(TrainerError) as raised:
        parse_lines(S3(s3.storage), location, bytes)
    assert raised.value.reason is Reason.STORAGE_UNREACHABLE


def test_parse_lines_of_no_object_is_none(s3: S3Server, location: Location) -> None:
    assert parse_lines(S3(s3.storage), location.child("x"), bytes) is None


def test_parse_lines_error_of_the_parser_is_not_retried(s3: S3Server, location: Location) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        parse_lines(S3(s3.storage), location, int)


def test_read_object_after_a_broken_connection_is_complete(
    s3: S3Server, location: Location, proxy: FaultyProxy
) -> None:
    content = s3.get(str(location))
    proxy.truncations_left = 1
    assert read_object(S3(s3.storage), location) == content


def test_read_object_broken_each_time_is_an_unreachable_store(
    s3: S3Server, location: Location, proxy: FaultyProxy
) -> None:
    proxy.truncations_left = 1000
    with pytest.raises(TrainerError) as raised:
        read_object(S3(s3.storage), location)
    assert raised.value.reason is Reason.STORAGE_UNREACHABLE
