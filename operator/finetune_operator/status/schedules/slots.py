"""Times of `spec.schedule`, with the semantics of Kubernetes' CronJob: cron lines in wall clock time of a time zone.

A wall clock time that a clock change skips does not fire, and one that occurs twice fires twice, as in robfig/cron, the
library of CronJob: https://github.com/robfig/cron/blob/v3.0.1/spec.go. cronsim evaluates the lines on naive wall clock
times, because its own handling of clock changes is that of Debian's cron.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from finetune_trainer.contract import split_cron_line

MAX_MISSED_SLOTS = 100
"""Number of missed times above which CronJob warns, too."""
_ANY_DAY = ("*", "*/1")
_MAX_CLOCK_CHANGE = timedelta(hours=3)
"""Clocks are put back by at most that much."""
_REFERENCE_TIME = datetime(2000, 1, 1, tzinfo=UTC)
"""A line without a time in the 50 years after it never fires."""


class InvalidScheduleError(ValueError):
    """Raised for a cron line that is malformed or never fires, and for an unknown time zone."""


class Timetable:
    """The times of a cron line in a time zone. They have whole minutes and are in UTC."""

    def __init__(self, line: str, zone_name: str) -> None:
        """Parse the line. Raises `InvalidScheduleError` with a message for the user."""
        self._zone = _load_zone(zone_name)
        self._fields = _split_line(line)
        try:
            first_time = self.find_next(_REFERENCE_TIME)
        except CronSimError as error:
            raise InvalidScheduleError(
                f"spec.schedule '{line}' is not valid or never fires: {error}; its fields are minute, hour, day of the "
                "month, month and day of the week"
            ) from error
        if first_time is None:
            raise InvalidScheduleError(f"spec.schedule '{line}' never fires; change its days or its months")

    def find_next(self, after: datetime) -> datetime | None:
        """Return the first time after `after`, or None if there is none within 50 years."""
        start = after + min(self._get_offset(after), self._get_offset(after + _MAX_CLOCK_CHANGE))
        found: list[datetime] = []
        for wall_time in self._simulate(start, is_reverse=False):
            instants = self._list_instants(wall_time)
            if found and instants and instants[0] >= min(found):
                break
            found += [instant for instant in instants if instant > after]
        return min(found, default=None)

    def find_last(self, until: datetime) -> datetime | None:
        """Return the last time that is not after `until`, or None if there is none within 50 years."""
        start = until + max(self._get_offset(until), self._get_offset(until - _MAX_CLOCK_CHANGE))
        found: list[datetime] = []
        for wall_time in self._simulate(start + timedelta(seconds=1), is_reverse=True):
            instants = self._list_instants(wall_time)
            if found and instants and instants[-1] <= max(found):
                break
            found += [instant for instant in instants if instant <= until]
        return max(found, default=None)

    def _simulate(self, start: datetime, *, is_reverse: bool) -> Iterator[datetime]:
        """Return the naive wall clock times after `start`, or before it, in the order in which a clock shows them."""
        simulator = CronSim(" ".join(self._fields), start.replace(tzinfo=None), reverse=is_reverse)
        # As robfig/cron, and unlike cronsim: a day matches both fields only if one of them is `*`, not if it is `*/2`.
        day_fields = (self._fields[2], self._fields[4])
        simulator.day_and = any(term in _ANY_DAY for field in day_fields for term in field.split(","))
        return iter(simulator)

    def _list_instants(self, wall_time: datetime) -> list[datetime]:
        """Return when clocks show this time: once, twice if they are put back, or never if they skip it."""
        candidates = {wall_time.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
        return sorted(
            instant
            for instant in candidates
            if instant.astimezone(self._zone).replace(tzinfo=None, fold=0) == wall_time
        )

    def _get_offset(self, instant: datetime) -> timedelta:
        return instant.astimezone(self._zone).utcoffset() or timedelta()


class MissedSlots(NamedTuple):
    """The times of a schedule between the last one that was handled and now."""

    due: datetime | None = None
    """The most recent time, if a run may still start."""
    expired: datetime | None = None
    """The most recent time, if it is too late for a run."""


def find_missed_slots(
    timetable: Timetable, handled_until: datetime, now: datetime, starting_deadline_seconds: int | None
) -> MissedSlots:
    """Return the most recent time after `handled_until`, whether it is due or expired. Earlier ones never fire."""
    last = timetable.find_last(now)
    if last is None or last <= handled_until:  # also if the clock was put back
        return MissedSlots()
    is_expired = starting_deadline_seconds is not None and now - last > timedelta(seconds=starting_deadline_seconds)
    return MissedSlots(expired=last) if is_expired else MissedSlots(due=last)


def has_too_many_missed_slots(timetable: Timetable, handled_until: datetime, slot: datetime) -> bool:
    """Return whether more than `MAX_MISSED_SLOTS` times have passed after `handled_until`, up to `slot`."""
    time: datetime | None = handled_until
    for _ in range(MAX_MISSED_SLOTS + 1):
        time = timetable.find_next(time) if time else None
        if time is None or time > slot:
            return False
    return True


@lru_cache(maxsize=1024)
def parse_timetable(line: str, zone_name: str) -> Timetable:
    """Return the times of a line. It keeps those that it has parsed. Raises `InvalidScheduleError`."""
    return Timetable(line, zone_name)


def _load_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise InvalidScheduleError(
            f"spec.timeZone '{name}' is unknown; use a name of the IANA database, such as Europe/Paris"
        ) from error


def _split_line(line: str) -> list[str]:
    """Return the five fields in the syntax of cronsim."""
    try:
        return split_cron_line(line)
    except ValueError as error:
        raise InvalidScheduleError(str(error)) from error
