"""The run's log as a file, so that it can be read beside the result when the pods are gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.text import escape_invisible

LOG_NAME = "run.log"


class PlainFormatter(logging.Formatter):
    """Lines with nothing in them that a terminal would obey: what an error says may come from the data."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, with such characters named."""
        return escape_invisible(super().format(record))


@dataclass
class RunLog:
    """What this attempt said so far, and earlier ones up to the checkpoint that it went on from."""

    path: Path
    restored_content: bytes = b""

    def restore(self, folder: Path) -> None:
        """Go on after what a checkpoint's folder holds."""
        file = folder / LOG_NAME
        self.restored_content = file.read_bytes() if file.is_file() else b""

    def save(self, folder: Path) -> None:
        """Into a checkpoint's folder, or beside the result."""
        (folder / LOG_NAME).write_bytes(self.restored_content + self.path.read_bytes())


@contextmanager
def capture_log(folder: Path) -> Iterator[RunLog]:
    """Write what the trainer says to a file in `folder` too, in this block."""
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
