"""Objects as raw rows: told by their name what they are, unpacked as they are read, never whole in memory."""

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
from finetune_trainer.data.readers.json_rows import read_json_array, read_json_lines
from finetune_trainer.data.readers.lines import BinaryStream, check_text_start
from finetune_trainer.data.readers.tables import read_csv_rows, read_parquet_rows
from finetune_trainer.data.row_types import DamagedFileError, RowError, SourceFile, SourceLocation
from finetune_trainer.errors import TrainerError

_COMPRESSED_SUFFIXES = (".gz", ".zst")
NumberedRows = Iterator[tuple[int, dict[str, Any] | RowError]]


def read_raw_rows(file: SourceFile) -> Iterator[tuple[SourceLocation, dict[str, Any] | RowError]]:
    """Every row of an object: its place, and its columns or what is wrong with it.

    Names other than `.json`, `.csv` and `.parquet` are read as JSON lines. Raises `DATA_INVALID`, naming the object
    and the row, if it cannot be read to its end.
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
    if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the data's
        return error
    if isinstance(error, DamagedFileError):
        location = SourceLocation(location.uri, error.line or location.line, location.unit)
        return TrainerError(Reason.DATA_INVALID, f"{location}: {error}")
    message = f"the object cannot be unpacked any further ({error}); it is damaged or was cut off: store it again"
    return TrainerError(Reason.DATA_INVALID, f"{location}: {message}")


def _open_file(file: SourceFile) -> BinaryStream:
    compression = _split_suffixes(file)[1]
    if compression == ".gz":
        return gzip.GzipFile(file.path, "rb")
    if compression == ".zst":
        import pyarrow as pa

        # Not the zstandard package: its streams end without a word where the data was cut off.
        return io.BufferedReader(pa.input_stream(str(file.path), compression="zstd"), 1 << 17)
    return file.path.open("rb")


def _split_suffixes(file: SourceFile) -> tuple[str, str]:
    """(type, packing) by the object's name, since its copy may have another."""
    name = PurePosixPath(file.uri.lower())
    if name.suffix in _COMPRESSED_SUFFIXES:
        return PurePosixPath(name.stem).suffix, name.suffix
    return name.suffix, ""


def _read_rows(file: SourceFile, stream: BinaryStream) -> tuple[str, NumberedRows]:
    suffix, compression = _split_suffixes(file)
    if suffix == ".parquet":
        return "row", _read_compressed_parquet(file.path, stream) if compression else read_parquet_rows(stream)
    check_text_start(stream)
    if suffix == ".csv":
        return "line", read_csv_rows(stream)
    if suffix == ".json" and _is_json_array(stream):
        return "row", read_json_array(stream)
    return "line", read_json_lines(stream)


def _is_json_array(stream: BinaryStream) -> bool:
    """Many `.json` files hold JSON lines; those begin with an object."""
    return stream.peek(64).lstrip().startswith(b"[")


def _read_compressed_parquet(path: Path, stream: BinaryStream) -> NumberedRows:
    """Parquet is read from its end, so it has to be unpacked first: to the disk that the data lies on."""
    with tempfile.TemporaryFile(dir=path.parent) as decompressed:
        shutil.copyfileobj(stream, decompressed, 1 << 20)
        decompressed.seek(0)
        yield from read_parquet_rows(decompressed)
