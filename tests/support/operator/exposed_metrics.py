"""The metrics that the operator exposes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import Counter, Histogram
from prometheus_client.core import Metric
from tests.support.operator.builders import build_finetunejob, build_key
from tests.support.operator.cached_owners import build_schedule, build_sweep, cache_owners

from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.controller.finetunejob.gauges import build_profiles_gauge, collect_job_gauges
from finetune_operator.controller.finetuneschedule.gauges import collect_schedule_gauges
from finetune_operator.controller.finetunesweep.gauges import collect_sweep_gauges
from finetune_operator.controller.gauges import collect_operator_gauges
from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.namespace_access import NamespaceRegistry
from finetune_operator.settings import Settings
from finetune_operator.telemetry import counters

_MAX_OBJECTS = Settings.model_fields["metrics_max_jobs"].default
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}


class Exposed(NamedTuple):
    """A metric as it is exposed."""

    type: str
    labels: set[str]
    help_text: str


@functools.cache
def list_metric_families() -> dict[str, Exposed]:
    """Return type, labels and help text of each metric by its documented name."""
    metric_families = {}
    for metric in _collect_metrics():
        suffix = "" if metric.type == "histogram" else _SUFFIXES.get(metric.type, ("",))[0]
        metric_families[metric.name + suffix] = Exposed(metric.type, _label_names(metric), metric.documentation)
    return metric_families


@functools.cache
def list_series_labels() -> dict[str, set[str]]:
    """Return the labels of each series by its name."""
    series_labels = {}
    for metric in _collect_metrics():
        for suffix in _SUFFIXES.get(metric.type, ("",)):
            series_labels[metric.name + suffix] = _label_names(metric) | ({"le"} if suffix == "_bucket" else set())
    return series_labels


def _collect_metrics() -> Iterator[Metric]:
    progress = {
        "percentage": 40, "loss": 1.5, "evalLoss": 2.0, "step": 4, "totalSteps": 10, "tokensPerSecond": 9.5,
        "estimatedRemainingSeconds": 60,
    }  # fmt: skip
    cache = FineTuneJobCache()
    body = build_finetunejob()
    body["status"] = {"phase": "Running", "progress": progress, "lastCheckpointTime": "2026-11-23T08:00:00Z"}
    cache.finetunejobs.update(build_key(), body)
    pod = {
        "metadata": {"name": "bot-1", "namespace": "team", "uid": "pod", "labels": {"finetune.dev/job": "bot"}},
        "status": {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]},
    }
    cache.pods.update(build_key(), pod)
    cache.unreadable_objects[build_key()] = cache.foreign_jobs[build_key()] = "uid"
    yield from counters.REGISTRY.collect()
    yield from collect_operator_gauges({"finetunejobs": 1}, WorkQueue(), True, NamespaceRegistry(["team"]))
    yield from collect_job_gauges(cache, _MAX_OBJECTS)
    yield build_profiles_gauge(is_valid=True)
    yield from _collect_owner_metrics()


def _collect_owner_metrics() -> Iterator[Metric]:
    time = "2026-11-23T08:00:00Z"
    times = {f"{name}Time": time for name in ("lastSchedule", "nextSchedule", "lastSuccessful")}
    failed = {"type": "UpToDate", "status": "Unknown", "reason": "CheckFailed"}
    champion = {"promotedTime": time, "metrics": {"accuracy": 0.9}}
    schedule = build_schedule(
        spec={"promotion": {"rules": [{"metric": "accuracy"}]}},
        status={**times, "champion": champion, "conditions": [failed]},
    )
    sweep = build_sweep(spec={"budget": {"gpuSeconds": 100}}, status={"gpuSeconds": 90})
    yield from collect_schedule_gauges(cache_owners(SCHEDULE_KIND, schedule), _MAX_OBJECTS)
    yield from collect_sweep_gauges(cache_owners(SWEEP_KIND, sweep), _MAX_OBJECTS)


def _label_names(family: Metric) -> set[str]:
    collectors = [collector for collector in vars(counters).values() if isinstance(collector, Counter | Histogram)]
    names = {collector._name: set(collector._labelnames) for collector in collectors}
    if family.name in names:
        return names[family.name]
    return {label for sample in family.samples for label in sample.labels}
