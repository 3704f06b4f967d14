"""Times of a schedule. The oracle tests each minute of a time zone and compares it with the fields of the line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator.status.schedules.slots import (
    InvalidScheduleError,
    MissedSlots,
    Timetable,
    find_missed_slots,
    has_too_many_missed_slots,
)

MINUTE = timedelta(minutes=1)
# Clocks are put forward or back by an hour or by half an hour, and at midnight.
CLOCK_CHANGES = {
    "America/New_York": ("2026-03-08T07:00", "2026-11-01T06:00"),
    "Europe/Paris": ("2026-03-29T01:00", "2026-10-25T01:00"),
    "Australia/Lord_Howe": ("2026-10-03T15:30", "2026-04-04T15:00"),
    "America/Santiago": ("2026-09-06T04:00", "2026-04-05T03:00"),
    "UTC": ("2026-03-08T07:00", "2026-11-01T06:00"),
}
RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))


def _at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _matches(field: str, value: int, bounds: tuple[int, int]) -> bool:
    for term in field.split(","):
        span, _, step = term.partition("/")
        low, _, high = span.partition("-")
        first, last = bounds if span == "*" else (int(low), int(high or (bounds[1] if step else low)))
        if first <= value <= last and (value - first) % int(step or 1) == 0:
            return True
    return False


@cache
def _get_wall_values(instant: datetime, zone_name: str) -> tuple[int, int, int, int, int]:
    wall = instant.astimezone(ZoneInfo(zone_name))
    return wall.minute, wall.hour, wall.day, wall.month, wall.isoweekday() % 7


def _fires(line: str, instant: datetime, zone_name: str) -> bool:
    """Return whether a line fires in a minute, as robfig/cron decides it."""
    fields, values = line.split(), _get_wall_values(instant, zone_name)
    minute, hour, day, month, weekday = (_matches(*each) for each in zip(fields, values, RANGES, strict=True))
    is_any_day = "*" in (fields[2], fields[4])
    return minute and hour and month and (day and weekday if is_any_day else day or weekday)


def _build_field(bounds: tuple[int, int]) -> st.SearchStrategy[str]:
    number = st.integers(*bounds)
    # cronsim reads 1-1/2 as 1/2, which nobody writes.
    span = st.sets(number, min_size=2, max_size=2).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(st.just("*") | span, st.integers(2, 20)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    values = st.lists(number, min_size=1, max_size=3).map(lambda items: ",".join(map(str, items)))
    return st.just("*") | values | span | steps


LINES = st.tuples(*map(_build_field, RANGES[:2]), _build_field((1, 28)), st.just("*"), _build_field(RANGES[4])).map(
    " ".join
)


@settings(max_examples=100, deadline=None)
@given(
    line=LINES,
    zone_name=st.sampled_from(sorted(CLOCK_CHANGES)),
    change=st.integers(0, 1),
    offset=st.integers(-180, 180),
)
def test_timetable_around_clock_change_equals_brute_force(line: str, zone_name: str, change: int, offset: int) -> None:
    timetable = Timetable(line, zone_name)
    now = _at(CLOCK_CHANGES[zone_name][change]) + timedelta(minutes=offset)
    minutes = [now + MINUTE * index for index in range(-180, 181)]
    firing = [minute for minute in minutes if _fires(line, minute, zone_name)]
    earlier, later = [each for each in firing if each <= now], [each for each in firing if each > now]
    found_last, found_next = timetable.find_last(now), timetable.find_next(now)
    assert (found_last if found_last and found_last >= minutes[0] else None) == (earlier[-1] if earlier else None)
    assert (found_next if found_next and found_next <= minutes[-1] else None) == (later[0] if later else None)


def test_timetable_skipped_time_does_not_fire_and_repeated_time_fires_twice() -> None:
    timetable = Timetable("30 2 * * *", "Europe/Paris")
    assert timetable.find_next(_at("2026-03-28T12:00")) == _at("2026-03-30T00:30")
    assert timetable.find_next(_at("2026-10-24T12:00")) == _at("2026-10-25T00:30")
    assert timetable.find_next(_at("2026-10-25T00:30")) == _at("2026-10-25T01:30")
    assert timetable.find_last(_at("2026-10-25T01:29")) == _at("2026-10-25T00:30")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("@hourly", "2026-11-23T09:00"),
        ("@daily", "2026-11-24T00:00"),
        ("@weekly", "2026-11-29T00:00"),
        ("@monthly", "2026-12-01T00:00"),
        ("@yearly", "2027-01-01T00:00"),
        ("0 3 * * MON", "2026-11-30T03:00"),
        ("0 3 ? jan-feb 7", "2027-01-03T03:00"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("0 0 */2 * 5", "2026-11-25T00:00"),  # day of the month or Friday
    ],
)
def test_timetable_line_has_next_time(line: str, expected: str) -> None:
    assert Timetable(line, "UTC").find_next(_at("2026-11-23T08:00")) == _at(expected)


@pytest.mark.parametrize(
    "line",
    [
        *("0 0 30 2 *", "0 0 31 4,6 *"),
        *("@every 5m", "@reboot", "* * * * * *", "* * * *", "60 * * * *", "a b c d e", "*/0 * * * *"),
        *("0 0 L * *", "0 0 * * 5L", "0 0 LW * *"),
    ],
)
def test_timetable_line_that_never_fires_is_refused_with_its_text(line: str) -> None:
    with pytest.raises(InvalidScheduleError) as raised:
        Timetable(line, "UTC")
    assert f"spec.schedule '{line}'" in str(raised.value)


@pytest.mark.parametrize("name", ["Mars/Base", "../UTC", "/etc/passwd", "Europe", "utc+1"])
def test_timetable_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidScheduleError, match=r"spec\.timeZone"):
        Timetable("@daily", name)


NOW = _at("2026-11-23T08:00")
HOURLY, MINUTELY = Timetable("0 * * * *", "UTC"), Timetable("* * * * *", "UTC")


@pytest.mark.parametrize(
    ("handled_until", "deadline", "expected"),
    [
        ("2026-11-23T08:00", None, MissedSlots()),
        ("2026-11-23T07:59", None, MissedSlots(due=NOW)),
        ("2026-11-22T08:00", None, MissedSlots(due=NOW)),  # only the most recent one
        ("2025-11-22T08:00", 1, MissedSlots(due=NOW)),
        ("2026-11-23T09:00", None, MissedSlots()),  # the clock was put back
    ],
)
def test_find_missed_slots_after_time_returns_most_recent(
    handled_until: str, deadline: int | None, expected: MissedSlots
) -> None:
    assert find_missed_slots(HOURLY, _at(handled_until), NOW, deadline) == expected


def test_find_missed_slots_after_deadline_returns_expired() -> None:
    now = _at("2026-11-23T08:10:01")
    assert find_missed_slots(HOURLY, _at("2026-11-23T05:00"), now, 600) == MissedSlots(expired=NOW)
    assert find_missed_slots(HOURLY, _at("2026-11-23T05:00"), now, 601) == MissedSlots(due=NOW)


@pytest.mark.parametrize(("minutes", "expected"), [(1, False), (100, False), (101, True), (525600, True)])
def test_has_too_many_missed_slots_above_100_is_true(minutes: int, expected: bool) -> None:
    assert has_too_many_missed_slots(MINUTELY, NOW - minutes * MINUTE, NOW) is expected
