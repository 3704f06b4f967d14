"""Times relative to now."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def parse_time(text: str) -> datetime | None:
    """Return a time in RFC 3339, or None if it is not one."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def format_age(text: str, now: datetime | None = None) -> str:
    """Return a time relative to now, such as `5 min ago` or `in 3 h`. Text that is not a time stays as it is."""
    parsed = parse_time(text)
    if parsed is None:
        return text
    seconds = ((now or datetime.now(UTC)) - parsed).total_seconds()
    if abs(seconds) < 10:
        return "now"
    duration = format_seconds(abs(seconds))
    return f"{duration} ago" if seconds > 0 else f"in {duration}"


def format_seconds(seconds: float) -> str:
    """Return a duration in its largest unit, such as `5 min`."""
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{int(seconds // size)} {unit}"
