"""The log of a run as a file, which is published with the result and outlives the pods."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.text import escape_invisible

LOG_NAME = "run.log"


class PlainFormatter(logging.Formatter):
    """Escapes invisible characters: messages may quote the data, which can contain control sequences for terminals."""

    def format(self, record: logging.LogRecord) -> str:
        """Format the record, with invisible characters as code points."""
        return escape_invisible(super().format(record))


@dataclass
class RunLog:
    """The log of this attempt, preceded by that of earlier attempts up to the checkpoint that was resumed."""

    path: Path
    restored_content: bytes = b""

    def restore(self, folder: Path) -> None:
        """Continue the log in the folder of a checkpoint, if it has one."""
        file = folder / LOG_NAME
        self.restored_content = file.read_bytes() if file.is_file() else b""

    def read(self) -> bytes:
        """Return the log so far."""
        return self.restored_content + self.path.read_bytes()

    def save(self, folder: Path) -> None:
        """Write the log to the folder of a checkpoint or of the result."""
        (folder / LOG_NAME).write_bytes(self.read())


@contextmanager
def capture_log(folder: Path) -> Iterator[RunLog]:
    """Also write the log of the trainer to a file in `folder` while the block runs."""
    path = folder / f"this-{LOG_NAME}"
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"))
    logger = logging.getLogger("finetune_trainer")
    logger.addHandler(handler)
    try:
        yield RunLog(path)
    finally:
        logger.removeHandler(handler)
        handler.close()
