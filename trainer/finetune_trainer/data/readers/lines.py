"""Reading of lines with a maximum length, and of the encoding and type of text files."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator

from finetune_trainer.data.readers.converted_stream import convert_carriage_returns, decode_utf16
from finetune_trainer.data.readers.file_types import HEAD_BYTES, check_text
from finetune_trainer.data.row_types import RowError

BinaryStream = io.BufferedReader | gzip.GzipFile
MAX_ROW_BYTES = 16 << 20
"""Maximum size of a row. A larger row is rejected before it is in memory."""
UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_TOO_LONG_MESSAGE = f"expected at most {MAX_ROW_BYTES >> 20} MiB on one line, found more; remove or split it"


def open_text(stream: BinaryStream) -> BinaryStream:
    """Return the text of a file in UTF-8, without a byte order mark, and with `\\n` at the end of its lines.

    UTF-16 with a byte order mark, as Excel writes "Unicode Text", is converted, and so are lines that end with `\\r`.
    Raises `DamagedFileError` if the file is clearly not text.
    """
    head = stream.peek(HEAD_BYTES)
    check_text(head)
    if head.startswith(UTF8_BOM):
        stream.read(len(UTF8_BOM))
    if head.startswith(_UTF16_BOMS):
        stream = decode_utf16(stream)
    head = stream.peek(1 << 16)
    return convert_carriage_returns(stream) if b"\r" in head[:-1] and b"\n" not in head else stream


def read_lines(stream: BinaryStream) -> Iterator[tuple[int, bytes | RowError]]:
    """Yield for each line that is not blank its number from 1, and its bytes, or an error if it is too long."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            _skip_to_line_end(stream, line)
            yield number, RowError(_TOO_LONG_MESSAGE)
        elif line.strip():
            yield number, line


def _skip_to_line_end(stream: BinaryStream, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)


def find_encoding_error(line: bytes) -> str | None:
    """Return a message about the encoding error of a line, or None if it is valid UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        position = f"byte 0x{line[error.start]:02x} at position {error.start}"
        return f"expected UTF-8, found {position}; is it Latin-1, or Windows-1252? Save it as UTF-8"
    return "expected UTF-8, found NUL bytes; is it UTF-16? Save it as UTF-8" if b"\0" in line else None
