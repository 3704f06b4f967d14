"""The location in the data of each kept row, in a file of 16 bytes per row."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.data.row_types import SourceLocation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RowLocations:
    """Records locations one by one, and returns them by number after the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._objects: dict[tuple[str, str], int] = {}
        """Number of each object of the data, by its URI and the unit of its rows."""

    def add(self, location: SourceLocation) -> None:
        """Record the location of the next row."""
        number = self._objects.setdefault((location.uri, location.unit), len(self._objects))
        array("q", [number, location.line]).tofile(self._file)

    def close(self) -> None:
        """Close the file after the last row, so that the locations can be read."""
        self._file.close()

    def load(self, rows: NDArray[np.int64]) -> list[SourceLocation]:
        """Return the locations of these rows, which are counted from 0."""
        import numpy as np

        if not len(rows):
            return []
        table = np.memmap(self._path, dtype=np.int64, mode="r").reshape(-1, 2)
        objects = list(self._objects)
        return [SourceLocation(objects[number][0], line, objects[number][1]) for number, line in table[rows].tolist()]
