"""Reads objects of an S3 store with the user's own credentials, and describes failures for that user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from finetune_operator.client.errors import ResultUnavailable
from finetune_trainer.contract import Reason, Storage
from finetune_trainer.errors import TrainerError
from finetune_trainer.text import to_one_line

if TYPE_CHECKING:
    from finetune_trainer.storage import S3, Location, S3Object

_URI_PATTERN = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/[^\x00-\x1f\\]*")
_ADVICE = {
    Reason.AUTH_FAILED: "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on this machine, or log in "
    "again if they have expired",
    Reason.STORAGE_UNREACHABLE: "check the network; if the endpoint has a name that only the cluster knows, pass "
    "--endpoint or set FINETUNE_S3_ENDPOINT",
    Reason.STORAGE_CORRUPT: "the object is damaged or was replaced, or the connection ended: try again, or run the "
    "FineTuneJob again",
}
"""What to do here, instead of the trainer's advice for a pod."""


class StoreReader:
    """Reads objects of one store. All methods raise `ResultUnavailable`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @cached_property
    def s3(self) -> S3:
        """The connection. boto3 and obstore, which take long to import, are imported when it is used."""
        from finetune_trainer.storage import S3

        return S3(self._storage)

    def read_small(self, uri: str) -> bytes | None:
        """Return the content of a small object, or None if there is none."""
        from finetune_trainer.storage import read_object

        with translate_storage_errors():
            return read_object(self.s3, locate(uri))

    def read(self, uri: str, max_bytes: int) -> bytes:
        """Return an object. A longer one than `max_bytes` is an error."""
        found = self.find(uri)
        if found.size > max_bytes:
            raise ResultUnavailable(f"{shown(uri)} has {found.size:,} bytes, more than the limit of {max_bytes:,}")
        return self._read_range(found, (0, found.size))

    def read_end(self, uri: str, max_bytes: int) -> bytes:
        """Return an object, or the end of a longer one."""
        found = self.find(uri)
        return self._read_range(found, (max(0, found.size - max_bytes), found.size))

    def find(self, uri: str) -> S3Object:
        """Return the listing of an object."""
        from finetune_trainer.storage import OUTPUT_ERRORS, find_objects

        location = locate(uri)
        if not location.key or not location.is_single:
            raise ResultUnavailable(f"{shown(uri)} is not the URI of an object")
        with translate_storage_errors():
            return find_objects(self.s3, location, OUTPUT_ERRORS)[0]

    def _read_range(self, found: S3Object, byte_range: tuple[int, int]) -> bytes:
        from finetune_trainer.storage import OUTPUT_ERRORS, read_range

        with translate_storage_errors():
            return read_range(self.s3, found, byte_range, OUTPUT_ERRORS)


def locate(uri: str) -> Location:
    """Return the location of a URI, which a status or a user may have written. Raises `ResultUnavailable`."""
    from finetune_trainer.storage import Location

    if not _URI_PATTERN.fullmatch(uri):
        raise ResultUnavailable(f"{shown(uri)} is not an S3 URI (s3://bucket/prefix)")
    return Location.parse(uri)


def shown(text: str) -> str:
    """Return untrusted text as a part of a message."""
    return to_one_line(text, 1100)


@contextmanager
def translate_storage_errors() -> Iterator[None]:
    """Raise `ResultUnavailable` for an error of the store."""
    try:
        yield
    except TrainerError as error:
        problem, _, advice = to_one_line(error.message, 3000).partition("; ")
        advice = _ADVICE.get(error.reason, advice)
        raise ResultUnavailable("; ".join(filter(None, [problem, advice]))) from None
