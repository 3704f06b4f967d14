"""The digest of each kept row, in a file of 32 bytes per row, and the digest of a set of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    DigestTable = NDArray[np.uint8]
    """Digests of rows, in the shape (rows, 32)."""

_PREFIX = "sha256:"
_DIGEST_BYTES = 32


class RowDigests:
    """Records digests one by one, and returns them by number after the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def add(self, digest: str) -> None:
        """Record the digest of the next row, `sha256:…`. An augmented row has none, which is recorded as zeros."""
        self._file.write(bytes.fromhex(digest.removeprefix(_PREFIX)).rjust(_DIGEST_BYTES, b"\0"))

    def close(self) -> None:
        """Close the file after the last row, so that the digests can be read."""
        self._file.close()

    def load(self) -> DigestTable:
        """Return the digests of all rows, in their order."""
        import numpy as np

        return np.fromfile(self._path, dtype=np.uint8).reshape(-1, _DIGEST_BYTES)


def iterate_digests(table: DigestTable) -> Iterator[str]:
    """Yield the digests as text: `sha256:…`."""
    return (_PREFIX + row.tobytes().hex() for row in table)


def compute_set_digest(table: DigestTable) -> str:
    """Return `sha256:…` of a set of rows. It does not depend on their order, on repetitions or on their files."""
    import numpy as np

    return _PREFIX + hashlib.sha256(np.unique(table, axis=0).tobytes()).hexdigest()
