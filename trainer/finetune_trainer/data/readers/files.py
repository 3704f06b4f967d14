"""Reading of raw rows from files: the type follows from the name; files are decompressed and read as streams."""

from __future__ import annotations

import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from finetune_trainer.contract import Reason
from finetune_trainer.data.readers.csv_rows import read_csv_rows
from finetune_trainer.data.readers.file_types import HEAD_BYTES, check_compression
from finetune_trainer.data.readers.json_rows import is_json_array, read_json_array, read_json_lines
from finetune_trainer.data.readers.lines import BinaryStream, open_text
from finetune_trainer.data.readers.parquet_rows import read_parquet_rows
from finetune_trainer.data.row_types import DamagedFileError, RowError, SourceFile, SourceLocation
from finetune_trainer.errors import TrainerError

_COMPRESSIONS = {".gz": ("gzip", b"\x1f\x8b"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
"""Name and first bytes of a compression, by the suffix."""
NumberedRows = Iterator[tuple[int, dict[str, Any] | RowError]]


def read_raw_rows(file: SourceFile) -> Iterator[tuple[SourceLocation, dict[str, Any] | RowError]]:
    """Yield each row of a file: its location, and its columns or the error that makes it invalid.

    Files whose name does not end with `.json`, `.csv`, `.tsv` or `.parquet` are read as JSON Lines. Raises
    `DATA_INVALID` with the object and the row if the rest of the file cannot be read.
    """
    location = SourceLocation(file.uri, 0)
    try:
        with _open_file(file) as stream:
            unit, rows = _read_rows(file, stream)
            location = SourceLocation(file.uri, 0, unit)
            for number, row in rows:
                location = SourceLocation(file.uri, number, unit)
                yield location, row
    except (DamagedFileError, EOFError, zlib.error, OSError) as error:
        raise _convert_error(SourceLocation(file.uri, location.line + 1, location.unit), error) from error


def _convert_error(location: SourceLocation, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # an error of the disk, not of the data
        return error
    if isinstance(error, DamagedFileError):
        location = SourceLocation(location.uri, error.line or location.line, location.unit)
        return TrainerError(Reason.DATA_INVALID, f"{location}: {error}")
    message = f"decompression failed ({error}): the object is damaged or truncated; upload it again"
    return TrainerError(Reason.DATA_INVALID, f"{location}: {message}")


def _open_file(file: SourceFile) -> BinaryStream:
    compression = _split_suffixes(file)[1]
    if compression:
        with file.path.open("rb") as stream:
            check_compression(stream.read(HEAD_BYTES), *_COMPRESSIONS[compression])
    if compression == ".gz":
        return gzip.GzipFile(file.path, "rb")
    if compression == ".zst":
        import pyarrow as pa

        # Not the zstandard package: its streams end without an error if the data is truncated.
        return io.BufferedReader(pa.input_stream(str(file.path), compression="zstd"), 1 << 17)
    return file.path.open("rb")


def _split_suffixes(file: SourceFile) -> tuple[str, str]:
    """Return the suffixes for type and compression from the object's name. The local copy may have another name."""
    name = PurePosixPath(file.uri.lower())
    if name.suffix in _COMPRESSIONS:
        return PurePosixPath(name.stem).suffix, name.suffix
    return name.suffix, ""


def _read_rows(file: SourceFile, stream: BinaryStream) -> tuple[str, NumberedRows]:
    suffix, compression = _split_suffixes(file)
    if suffix == ".parquet":
        return "row", _read_compressed_parquet(file.path, stream) if compression else read_parquet_rows(stream)
    stream = open_text(stream)
    if suffix in (".csv", ".tsv"):
        return "line", read_csv_rows(stream, prefers_tabs=suffix == ".tsv")
    if suffix == ".json" and is_json_array(stream):
        return "row", read_json_array(stream)
    return "line", read_json_lines(stream)


def _read_compressed_parquet(path: Path, stream: BinaryStream) -> NumberedRows:
    """Decompress Parquet to the disk of the data, since Parquet is read from its end, and yield its rows."""
    with tempfile.TemporaryFile(dir=path.parent) as decompressed:
        shutil.copyfileobj(stream, decompressed, 1 << 20)
        decompressed.seek(0)
        yield from read_parquet_rows(decompressed)
