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
from finetune_trainer.data.readers.json_rows import json_array, json_lines
from finetune_trainer.data.readers.lines import BinaryStream, start_text
from finetune_trainer.data.readers.tables import csv_rows, parquet_rows
from finetune_trainer.data.row_types import DamagedError, Place, RowError, SourceFile
from finetune_trainer.errors import TrainerError

_PACKED = (".gz", ".zst")
Numbered = Iterator[tuple[int, dict[str, Any] | RowError]]


def raw_rows(file: SourceFile) -> Iterator[tuple[Place, dict[str, Any] | RowError]]:
    """Every row of an object: its place, and its columns or what is wrong with it.

    Names other than `.json`, `.csv` and `.parquet` are read as JSON lines. Raises `DATA_INVALID`, naming the object
    and the row, if it cannot be read to its end.
    """
    place = Place(file.uri, 0)
    try:
        with _opened(file) as stream:
            unit, rows = _rows(file, stream)
            place = Place(file.uri, 0, unit)
            for number, row in rows:
                place = Place(file.uri, number, unit)
                yield place, row
    except (DamagedError, EOFError, zlib.error, OSError) as error:
        raise _invalid(Place(file.uri, place.line + 1, place.unit), error) from error


def _invalid(place: Place, error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno is not None:  # the disk's fault, not the data's
        return error
    if isinstance(error, DamagedError):
        place = Place(place.uri, error.line or place.line, place.unit)
        return TrainerError(Reason.DATA_INVALID, f"{place}: {error}")
    what = f"the object cannot be unpacked any further ({error}); it is damaged or was cut off: store it again"
    return TrainerError(Reason.DATA_INVALID, f"{place}: {what}")


def _opened(file: SourceFile) -> BinaryStream:
    packing = _suffixes(file)[1]
    if packing == ".gz":
        return gzip.GzipFile(file.path, "rb")
    if packing == ".zst":
        import pyarrow as pa

        # Not the zstandard package: its streams end without a word where the data was cut off.
        return io.BufferedReader(pa.input_stream(str(file.path), compression="zstd"), 1 << 17)
    return file.path.open("rb")


def _suffixes(file: SourceFile) -> tuple[str, str]:
    """(type, packing) by the object's name, since its copy may have another."""
    name = PurePosixPath(file.uri.lower())
    if name.suffix in _PACKED:
        return PurePosixPath(name.stem).suffix, name.suffix
    return name.suffix, ""


def _rows(file: SourceFile, stream: BinaryStream) -> tuple[str, Numbered]:
    suffix, packing = _suffixes(file)
    if suffix == ".parquet":
        return "row", _unpacked_parquet(file.path, stream) if packing else parquet_rows(stream)
    start_text(stream)
    if suffix == ".csv":
        return "line", csv_rows(stream)
    if suffix == ".json" and _is_array(stream):
        return "row", json_array(stream)
    return "line", json_lines(stream)


def _is_array(stream: BinaryStream) -> bool:
    """Many `.json` files hold JSON lines; those begin with an object."""
    return stream.peek(64).lstrip().startswith(b"[")


def _unpacked_parquet(path: Path, stream: BinaryStream) -> Numbered:
    """Parquet is read from its end, so it has to be unpacked first: to the disk that the data lies on."""
    with tempfile.TemporaryFile(dir=path.parent) as unpacked:
        shutil.copyfileobj(stream, unpacked, 1 << 20)
        unpacked.seek(0)
        yield from parquet_rows(unpacked)
