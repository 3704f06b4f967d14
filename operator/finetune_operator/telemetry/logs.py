"""Log format: text or JSON. Lines that are logged while an object is reconciled name the object."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

_REFERENCE_FIELDS = ("namespace", "name", "uid")
_current_object: ContextVar[dict[str, str] | None] = ContextVar("object", default=None)


@contextmanager
def bind_object(namespace: str, name: str, uid: str) -> Iterator[None]:
    """Add the object to all lines that are logged in this context, by any module."""
    token = _current_object.set({"namespace": namespace, "name": name, "uid": uid})
    try:
        yield
    finally:
        _current_object.reset(token)


def configure_logging(level: str, log_format: Literal["text", "json"]) -> None:
    """Log to standard error, including Python's warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.getLevelNamesMapping()[level.upper()], handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it logs a line for every event of every object
    logging.getLogger("asyncio").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drop the error that asyncio logs if kopf 1.45 is stopped while it lists."""
    message = record.getMessage()
    return not ("closing of asynchronous generator" in message and "infinite_watch" in message)


class TextFormatter(logging.Formatter):
    """Formats a line as text, with the object before the message.

    Messages may quote untrusted text from pods. Line breaks and other control characters are escaped, so that a message
    cannot look like several lines. Tracebacks keep their lines.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        reference = _get_object_reference(record)
        record.message = _escape_unprintable(record.message)
        if reference:
            record.message = f"{reference.get('namespace')}/{reference.get('name')}: {record.message}"
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Formats a line as JSON: time, level, logger, message, and if present namespace, name, uid and exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_get_object_reference(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _escape_unprintable(text: str) -> str:
    """Escape line breaks and other unprintable characters as in Python literals."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _get_object_reference(record: logging.LogRecord) -> dict[str, str]:
    """Return the object that a line is about. In kopf's own lines it is attached to the record."""
    reference = record.__dict__.get("k8s_ref") or _current_object.get() or {}
    return {key: reference[key] for key in _REFERENCE_FIELDS if reference.get(key)}
