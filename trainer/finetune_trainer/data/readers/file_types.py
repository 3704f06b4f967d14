"""Detection of files that are not what their name says, by their first bytes."""

from __future__ import annotations

import re

from finetune_trainer.data.row_types import DamagedFileError

HEAD_BYTES = 512
"""Number of bytes at the start of a file by which its type is detected."""
_COMPRESSED = "decompress it, or compress it as .gz or .zst"
_SIGNATURES = (
    (b"\xff\xfe\0\0", "UTF-32 text; convert it to UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32 text; convert it to UTF-8"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"PARE", "an encrypted Parquet file; write it without encryption"),
    (b"\x1f\x8b", "gzip data; use a name that ends with .gz (if it is compressed twice, decompress it once)"),
    (b"\x28\xb5\x2f\xfd", "zstd data; use a name that ends with .zst (if it is compressed twice, decompress it once)"),
    (b"BZh91AY", f"bzip2 data; {_COMPRESSED}"),
    (b"\xfd7zXZ\0", f"xz data; {_COMPRESSED}"),
    (b"\x04\x22\x4d\x18", f"LZ4 data; {_COMPRESSED}"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; upload the files in it, or save the sheet as CSV UTF-8"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; upload the files in it"),
    (b"Rar!\x1a\x07", "a RAR archive; upload the files in it"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook; save the sheet as CSV UTF-8"),
    (b"%PDF-", "a PDF document; only rows of text can be read"),
    (b"ARROW1\0\0", "an Arrow file; write Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream, as the datasets library caches it; use to_json or to_parquet"),
    (b"Obj\x01", "an Avro file; write Parquet"),
    (b"SQLite format 3", "an SQLite database; export its rows"),
    (
        b"version https://git-lfs.github.com/",
        "a pointer of Git LFS; upload the file itself, as git lfs pull fetches it",
    ),
)
_WEB_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|\?xml)\b", re.IGNORECASE)
_TAR_SIGNATURE, _TAR_OFFSET = b"ustar", 257


def find_file_type(head: bytes) -> str | None:
    """Return the type of a file that is no data file, with what to do, by its first bytes. None: no such type."""
    for signature, file_type in _SIGNATURES:
        if head.startswith(signature):
            return file_type
    if head[_TAR_OFFSET:].startswith(_TAR_SIGNATURE):
        return "a tar archive; upload the files in it"
    return "a web page, perhaps the error of a download; download it again" if _WEB_PAGE.match(head) else None


def check_text(head: bytes) -> None:
    """Raise `DamagedFileError` if a file with these first bytes is clearly not text with rows."""
    file_type = find_file_type(head)
    if file_type:
        raise DamagedFileError(f"expected text, found {file_type}")


def check_parquet(head: bytes) -> None:
    """Raise `DamagedFileError` if a file with these first bytes is of a known type other than Parquet."""
    file_type = None if head.startswith(b"PAR1") else find_file_type(head)
    if file_type:
        raise DamagedFileError(f"expected a Parquet file, found {file_type}")


def check_compression(head: bytes, name: str, signature: bytes) -> None:
    """Raise `DamagedFileError` if a file that is not empty does not begin with the signature of its compression."""
    if head and not head.startswith(signature):
        file_type = find_file_type(head) or "other data; if it is not compressed, remove the suffix from its name"
        raise DamagedFileError(f"expected {name} data by the name, found {file_type}")
