"""Reader of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from finetune_trainer.data.readers.csv_rows import check_names_unique
from finetune_trainer.data.readers.file_types import HEAD_BYTES, check_parquet
from finetune_trainer.data.readers.lines import BinaryStream
from finetune_trainer.data.row_types import DamagedFileError, RowError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 128


def read_parquet_rows(file: IO[bytes] | BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each row its number from 1, and its columns. Only a part of a row group is in memory at a time."""
    import pyarrow as pa

    number = 0
    check_parquet(file.read(HEAD_BYTES))
    file.seek(0)
    try:
        for batch in _read_batches(file):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"expected texts in UTF-8, found others: {error}; write the file again") from error
    except OverflowError as error:
        raise DamagedFileError(f"found a date within a column that is out of range ({error}); remove it") from error
    except (pa.ArrowException, ValueError) as error:
        raise DamagedFileError(
            f"expected a complete Parquet file, found: {str(error)[:200]}; upload it again"
        ) from error


def _read_batches(file: IO[bytes] | BinaryStream) -> Iterator[pa.RecordBatch]:
    from pyarrow import parquet

    # Without buffer_size, pyarrow reads a complete row group, which may be the complete file.
    with parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        check_names_unique(table.schema_arrow.names)
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            yield _replace_times(batch)


def _replace_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with integers for dates and times: Python has no objects for all of their values."""
    import pyarrow as pa

    for index, field in enumerate(batch.schema):
        if pa.types.is_temporal(field.type):
            numbers = batch.column(index).cast(pa.int32() if field.type.bit_width == 32 else pa.int64())
            batch = batch.set_column(index, field.name, numbers)
    return batch
