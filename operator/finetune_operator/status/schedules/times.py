"""Points in time of FineTuneSchedules: timestamps in RFC 3339 and times in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def parse_time(text: str) -> datetime:
    """Return the time of a timestamp in RFC 3339. One without an offset is in UTC. Raises `ValueError`."""
    time = datetime.fromisoformat(text)
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def format_time(time: datetime) -> str:
    """Return a timestamp in RFC 3339 with whole seconds."""
    return time.astimezone(UTC).strftime(TIME_FORMAT)


def get_minute(time: datetime) -> int:
    """Return the number of whole minutes since 1970."""
    return int(time.timestamp()) // 60
