"""Gauges of FineTuneSchedules, computed from the object cache at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api.schedule import ScheduleConditionType
from finetune_operator.controller.owner_gauges import (
    Condition,
    OwnerMetadata,
    build_gauge,
    build_omitted_gauge,
    read_owners,
)
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.observed.objects import parse_timestamp


class _Rule(msgspec.Struct):
    metric: str


class _Promotion(msgspec.Struct):
    rules: list[_Rule] = []


class _Spec(msgspec.Struct):
    suspend: bool = False
    promotion: _Promotion = msgspec.field(default_factory=_Promotion)


class _Champion(msgspec.Struct, rename="camel"):
    promoted_time: str
    metrics: dict[str, float] = {}


class _Status(msgspec.Struct, rename="camel"):
    conditions: list[Condition] = []
    last_schedule_time: str | None = None
    next_schedule_time: str | None = None
    last_successful_time: str | None = None
    champion: _Champion | None = None
    runs_since_promotion: int = 0


class _Schedule(msgspec.Struct):
    """The part of a FineTuneSchedule that gauges need."""

    metadata: OwnerMetadata
    spec: _Spec
    status: _Status

    @property
    def labels(self) -> list[str]:
        return [self.metadata.namespace, self.metadata.name]


def collect_schedule_gauges(cache: OwnerCache, max_series: int) -> Iterator[Metric]:
    """Yield the gauges of FineTuneSchedules, with series of their own for at most `max_series` of them."""
    schedules = list(read_owners(cache, _Schedule))
    yield _build_schedules_gauge(schedules)
    shown = schedules[:max_series]
    yield from _build_timestamp_gauges(shown)
    yield from _build_champion_gauges(shown)
    yield build_omitted_gauge("finetune_schedules_omitted", "FineTuneSchedules", len(schedules), max_series)


def _build_schedules_gauge(schedules: Iterable[_Schedule]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_schedules",
        "FineTuneSchedules by state: Active, Suspended or Stalled, and the reason of a stalled one.",
        labels=["namespace", "state", "reason"],
    )
    for labels, count in Counter(_get_state(schedule) for schedule in schedules).items():
        family.add_metric(labels, count)
    return family


def _get_state(schedule: _Schedule) -> tuple[str, str, str]:
    """Return the namespace, the state and the reason of a FineTuneSchedule."""
    stalled_reasons = [
        condition.reason
        for condition in schedule.status.conditions
        if (condition.type, condition.status) == (ScheduleConditionType.STALLED, "True")
    ]
    if stalled_reasons:
        return schedule.metadata.namespace, "Stalled", stalled_reasons[0]
    return schedule.metadata.namespace, "Suspended" if schedule.spec.suspend else "Active", ""


def _build_timestamp_gauges(schedules: list[_Schedule]) -> Iterator[Metric]:
    last = build_gauge(
        "finetune_schedule_last_schedule_timestamp_seconds",
        "Last time of spec.schedule for which a run was created or skipped.",
    )
    following = build_gauge(
        "finetune_schedule_next_schedule_timestamp_seconds",
        "Next time of spec.schedule. Absent while the schedule is suspended.",
    )
    successful = build_gauge("finetune_schedule_last_successful_timestamp_seconds", "Time when a run last completed.")
    for schedule in schedules:
        status = schedule.status
        _add_time(last, schedule, status.last_schedule_time)
        _add_time(following, schedule, None if schedule.spec.suspend else status.next_schedule_time)
        _add_time(successful, schedule, status.last_successful_time)
    yield from (last, following, successful)


def _add_time(family: GaugeMetricFamily, schedule: _Schedule, time: str | None) -> None:
    if (seconds := parse_timestamp(time)) is not None:
        family.add_metric(schedule.labels, seconds)


def _build_champion_gauges(schedules: list[_Schedule]) -> Iterator[Metric]:
    promoted = build_gauge("finetune_schedule_champion_timestamp_seconds", "Time when the champion was promoted.")
    metrics = build_gauge(
        "finetune_schedule_champion_metric", "Metrics of promotion.rules of the champion.", labels=["metric"]
    )
    runs = build_gauge("finetune_schedule_runs_since_promotion", "Complete runs since the last promotion.")
    for schedule in schedules:
        runs.add_metric(schedule.labels, schedule.status.runs_since_promotion)
        if champion := schedule.status.champion:
            _add_time(promoted, schedule, champion.promoted_time)
            for name in dict.fromkeys(rule.metric for rule in schedule.spec.promotion.rules):
                if name in champion.metrics:
                    metrics.add_metric([*schedule.labels, name], champion.metrics[name])
    yield from (promoted, metrics, runs)
