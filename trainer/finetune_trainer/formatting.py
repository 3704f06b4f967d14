"""Formatting of numbers, sizes and durations for people: in log lines, error messages, the plan and the report."""

from __future__ import annotations

_MINUS = "\N{MINUS SIGN}"


def format_number(value: float) -> str:
    """Format a number with about four significant digits: `0.712`, `24.31`, `1,204`."""
    magnitude = abs(value)
    if magnitude >= 1000 or value == int(value):
        text = f"{value:,.0f}"
    elif magnitude < 0.01:
        text = f"{value:.2g}"
    else:
        text = f"{value:.{3 if magnitude < 10 else 2 if magnitude < 100 else 1}f}"
    return text.replace("-", _MINUS)


def format_signed(value: float) -> str:
    """Format a change, with its sign: `+0.220`."""
    return f"+{format_number(value)}" if value > 0 else format_number(value)


def format_share(part: float, total: float) -> str:
    """Format a share as a percentage: `12.5 %`. A part is never rounded to 0 % or 100 %."""
    if not total:
        return "0 %"
    percent = 100 * part / total
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %".replace(".0 %", " %")


def pluralize(count: float, singular: str, plural_form: str = "") -> str:
    """Format a count with its noun: `1 row`, `1,200 rows`."""
    return f"{format_number(count)} {singular if count == 1 else plural_form or singular + 's'}"


def format_bytes(byte_count: float) -> str:
    """Format a size in bytes with binary units, as Kubernetes does: `512 B`, `1.2 GiB`."""
    unit = "B"
    for larger_unit in ("KiB", "MiB", "GiB", "TiB"):
        if byte_count < 1024:
            break
        byte_count, unit = byte_count / 1024, larger_unit
    return f"{byte_count:.0f} {unit}" if unit == "B" else f"{byte_count:.1f} {unit}"


def format_duration(seconds: float) -> str:
    """Format a duration in seconds: `42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
