"""Points in time of FineTuneSchedules: timestamps in RFC 3339 and times in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def parse_time(text: str) -> datetime:
    """Return the time of a timestamp in RFC 3339. One without an offset is in UTC.

    Raises `ValueError` or `OverflowError`.
    """
    time = datetime.fromisoformat(text.upper())  # the API server accepts a lower-case t and z
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def find_time(text: str | None) -> datetime | None:
    """Return the time of a timestamp that a user has written, or None if it is unset or not a time.

    The API server accepts offsets that do not exist, such as +99:00.
    """
    try:
        return parse_time(text) if text else None
    except (ValueError, OverflowError):
        return None


def format_time(time: datetime) -> str:
    """Return a timestamp in RFC 3339 with whole seconds."""
    return time.astimezone(UTC).strftime(TIME_FORMAT)


def get_minute(time: datetime) -> int:
    """Return the number of whole minutes since 1970."""
    return int(time.timestamp()) // 60
