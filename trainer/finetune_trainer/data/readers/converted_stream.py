"""Conversion of text files while they are read: UTF-16 to UTF-8, and the line breaks of old Macs to `\\n`."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_trainer.data.row_types import DamagedFileError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_CHUNK_BYTES = 1 << 16


class _ConvertedStream(io.RawIOBase):
    """Stream of the bytes that a function makes of each chunk of another stream. The last chunk is empty."""

    def __init__(self, stream: io.BufferedIOBase, convert: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._convert = convert
        self._pending = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        chunk = b"more"
        while not self._pending and chunk:
            chunk = self._stream.read(_CHUNK_BYTES)
            self._pending = self._convert(chunk)
        data, self._pending = self._pending[: len(target)], self._pending[len(target) :]
        target[: len(data)] = data
        return len(data)


def decode_utf16(stream: io.BufferedIOBase) -> io.BufferedReader:
    """Return the UTF-16 text of a stream, which begins with a byte order mark, as UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-16")()

    def convert(chunk: bytes) -> bytes:
        try:
            return decoder.decode(chunk, final=not chunk).encode()
        except UnicodeDecodeError as error:
            raise DamagedFileError(f"expected UTF-16 after its byte order mark, found: {error.reason}") from error

    return io.BufferedReader(_ConvertedStream(stream, convert), _CHUNK_BYTES)


def convert_carriage_returns(stream: io.BufferedIOBase) -> io.BufferedReader:
    """Return a text whose lines end with a single `\\r` with `\\n` instead."""
    converted = _ConvertedStream(stream, lambda chunk: chunk.replace(b"\r", b"\n"))
    return io.BufferedReader(converted, _CHUNK_BYTES)
