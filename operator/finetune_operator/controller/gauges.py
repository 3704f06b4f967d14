"""Gauges of one replica of the operator, computed at each scrape."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.controller.work_queue import WorkQueue
from finetune_operator.kube.namespace_access import NamespaceRegistry


def collect_operator_gauges(
    object_counts: Mapping[str, int], queue: WorkQueue | None, is_leader: bool, namespaces: NamespaceRegistry
) -> Iterator[Metric]:
    """Yield the gauges of this replica. `object_counts` are the numbers of cached objects by resource."""
    last_list_time = time.time() - namespaces.compute_silence_seconds()
    for name, help_text, value in (
        ("leader", "1 if this replica is the leader, otherwise 0.", float(is_leader)),
        ("queue_depth", "Objects of all kinds in the work queue.", queue.get_depth() if queue else 0),
        (
            "queue_longest_wait_seconds",
            "Age of the oldest queued object.",
            queue.get_longest_wait() if queue else 0,
        ),
        (
            "longest_reconcile_seconds",
            "Age of the oldest running reconcile.",
            queue.get_longest_processing() if queue else 0,
        ),
        ("last_list_timestamp_seconds", "Time of the last successful full list.", last_list_time),
    ):
        yield GaugeMetricFamily(f"finetune_operator_{name}", help_text, value)
    family = GaugeMetricFamily(
        "finetune_operator_stored_objects",
        "Objects in the cache. Of a finished run only the FineTuneJob is kept.",
        labels=["resource"],
    )
    for resource, count in object_counts.items():
        family.add_metric([resource], count)
    yield family
    yield _build_readable_gauge(namespaces)


def _build_readable_gauge(namespaces: NamespaceRegistry) -> Metric:
    family = GaugeMetricFamily(
        "finetune_operator_namespace_readable",
        "1 if the operator can list the watched namespace, otherwise 0.",
        labels=["namespace"],
    )
    unreadable = namespaces.get_unreadable()
    for name in namespaces.get_names():
        family.add_metric([name], float(name not in unreadable))
    return family
