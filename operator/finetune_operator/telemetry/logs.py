"""Log lines, for people or for programs. What is logged while an object is worked on says which one."""

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
    """What is logged meanwhile, by whatever module, is about this object."""
    token = _current_object.set({"namespace": namespace, "name": name, "uid": uid})
    try:
        yield
    finally:
        _current_object.reset(token)


def configure_logging(level: str, log_format: Literal["text", "json"]) -> None:
    """Log to standard error. Warnings of Python itself are log lines too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.getLevelNamesMapping()[level.upper()], handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # a line for every event of every object
    logging.getLogger("asyncio").addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    """kopf 1.45, stopped while it lists, leaves that to the loop to close, which logs an error with a traceback."""
    message = record.getMessage()
    return not ("closing of asynchronous generator" in message and "infinite_watch" in message)


class TextFormatter(logging.Formatter):
    """For people; the object stands before the message.

    Messages quote what pods say: whatever moves the cursor or the reader's eye is written out, so that no message looks
    like two lines. Tracebacks keep their lines.
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
    """One JSON object a line: time, level, logger, message; namespace, name, uid and exception where there are any."""

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
    """Line breaks, escapes and other characters without a shape, as Python writes them."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def _get_object_reference(record: logging.LogRecord) -> dict[str, str]:
    """The object that a line is about; kopf attaches it to the record."""
    reference = record.__dict__.get("k8s_ref") or _current_object.get() or {}
    return {key: reference[key] for key in _REFERENCE_FIELDS if reference.get(key)}
