"""Gauges of FineTuneSchedules, computed from the object cache at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import takewhile

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api import Phase
from finetune_operator.api.schedule import ScheduleConditionType, ScheduleReason
from finetune_operator.controller.owner_gauges import (
    Condition,
    OwnerMetadata,
    build_gauge,
    build_omitted_gauge,
    read_owners,
)
from finetune_operator.kube.owner_cache import OwnerCache
from finetune_operator.observed.objects import parse_timestamp

_FAILED_PROMOTIONS = (ScheduleReason.PROMOTION_FAILED, ScheduleReason.ALIAS_CONFLICT)
_FAILED_TASKS = (ScheduleReason.CHECK_FAILED, *_FAILED_PROMOTIONS)


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


class _Run(msgspec.Struct):
    phase: str | None = None


class _Status(msgspec.Struct, rename="camel"):
    conditions: list[Condition] = []
    runs: list[_Run] = []
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
    yield from _build_run_gauges(shown)
    yield _build_task_gauge(shown)
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
    for schedule in schedules:
        if champion := schedule.status.champion:
            _add_time(promoted, schedule, champion.promoted_time)
            for name in dict.fromkeys(rule.metric for rule in schedule.spec.promotion.rules):
                if name in champion.metrics:
                    metrics.add_metric([*schedule.labels, name], champion.metrics[name])
    yield from (promoted, metrics)


def _build_run_gauges(schedules: list[_Schedule]) -> Iterator[Metric]:
    since_promotion = build_gauge(
        "finetune_schedule_runs_since_promotion",
        "Complete runs since the last promotion. Absent while the schedule is suspended.",
    )
    failed = build_gauge(
        "finetune_schedule_failed_runs",
        "Runs that have ended without a result since the last complete one. Absent while the schedule is suspended.",
    )
    for schedule in schedules:
        if not schedule.spec.suspend:
            since_promotion.add_metric(schedule.labels, schedule.status.runs_since_promotion)
            failed.add_metric(schedule.labels, _count_failed_runs(schedule.status.runs))
    yield from (since_promotion, failed)


def _count_failed_runs(runs: list[_Run]) -> int:
    """Return the number of runs after the last complete one that have ended. `runs` has the newest one first."""
    ended_phases = [run.phase for run in runs if run.phase]
    return len(list(takewhile(lambda phase: phase != Phase.COMPLETE, ended_phases)))


def _build_task_gauge(schedules: list[_Schedule]) -> Metric:
    family = build_gauge(
        "finetune_schedule_task_failed",
        "1 while the last task has failed, by reason: CheckFailed, PromotionFailed or AliasConflict.",
        labels=["reason"],
    )
    for schedule in schedules:
        # The inputs of a suspended schedule are not checked, but its champion may still be set.
        reasons = _FAILED_PROMOTIONS if schedule.spec.suspend else _FAILED_TASKS
        for reason in dict.fromkeys(each.reason for each in schedule.status.conditions if each.reason in reasons):
            family.add_metric([*schedule.labels, reason], 1)
    return family
