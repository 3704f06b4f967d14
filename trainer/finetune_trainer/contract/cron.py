"""The syntax of `spec.schedule` of a FineTuneSchedule, which is that of Kubernetes' CronJob without `@every`."""

from __future__ import annotations

import re

_NAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_FIELD_COUNT = 5
_LAST_DAY = re.compile(r"L|W|#")
_LAST_WEEKDAY = re.compile(r"[0-9]L|^L|#")


def split_cron_line(line: str) -> list[str]:
    """Return the five fields of a cron line, in upper case and with `*` in place of `?`.

    Raises `ValueError` with a message for the user if the line is not supported.
    """
    text = line.strip()
    if text.startswith("@"):
        if text.lower() not in _NAMES:
            names = ", ".join(sorted(_NAMES))
            raise ValueError(f"spec.schedule '{line}' is not supported; use a cron line or one of {names}")
        text = _NAMES[text.lower()]
    fields = text.upper().replace("?", "*").split()
    if len(fields) != _FIELD_COUNT:
        raise ValueError(
            f"spec.schedule '{line}' has {len(fields)} fields; use five: minute, hour, day of the month, month and day "
            "of the week"
        )
    if _LAST_DAY.search(fields[2]) or _LAST_WEEKDAY.search(fields[4]):
        raise ValueError(f"spec.schedule '{line}' has L, W or #, which CronJob does not support either")
    return fields
