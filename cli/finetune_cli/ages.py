"""Ages as kubectl prints them."""

from __future__ import annotations

from datetime import UTC, datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def format_age(timestamp: str, now: datetime | None = None) -> str:
    """Format the time since a timestamp (RFC 3339), such as `42s`, `5m`, `3h` or `12d`. Empty if it is not one."""
    try:
        begin = datetime.fromisoformat(timestamp)
    except ValueError:
        return ""
    if begin.tzinfo is None:
        begin = begin.replace(tzinfo=UTC)
    seconds = max(0, int(((now or datetime.now(UTC)) - begin).total_seconds()))
    for size, unit, limit in ((1, "s", 2 * _MINUTE), (_MINUTE, "m", 2 * _HOUR), (_HOUR, "h", 2 * _DAY)):
        if seconds < limit:
            return f"{seconds // size}{unit}"
    return f"{seconds // _DAY}d"
