"""Files that commands write."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from finetune_cli.errors import CommandError


def write_file(path: Path, content: bytes) -> Path:
    """Write a file, which appears complete or not at all, and return its path. A link is not followed."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
    return path


def create_file(path: Path, content: str) -> None:
    """Write a new file. Raises `CommandError` if there is a file of this name."""
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except FileExistsError:
        raise CommandError(f"{path} exists and is not overwritten; choose another --file") from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}") from None
