"""What the gauges of FineTuneSchedules and of FineTuneSweeps have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from prometheus_client.core import GaugeMetricFamily

from finetune_operator.kube.owner_cache import OwnerCache

OwnerT = TypeVar("OwnerT")


class Condition(msgspec.Struct):
    """The part of a condition that gauges need."""

    type: str
    status: str
    reason: str = ""


class OwnerMetadata(msgspec.Struct):
    """The metadata that labels are made of."""

    name: str
    namespace: str


def read_owners(cache: OwnerCache, owner_type: type[OwnerT]) -> Iterator[OwnerT]:
    """Yield the objects by namespace and name, as far as `owner_type` describes them.

    Objects in unreadable namespaces are omitted, because their state is unknown, and objects of another version, whose
    fields may have other types.
    """
    for key in sorted(cache.list_active_keys()):
        try:
            yield msgspec.convert(cache.get_owner(key), owner_type)
        except msgspec.ValidationError:
            continue


def build_gauge(name: str, help_text: str, labels: Iterable[str] = ()) -> GaugeMetricFamily:
    """Return a gauge of single objects, without values."""
    return GaugeMetricFamily(name, help_text, labels=["namespace", "name", *labels])


def build_omitted_gauge(name: str, help_text: str, count: int, limit: int) -> GaugeMetricFamily:
    """Return the gauge of the objects that have no series of their own."""
    text = f"{help_text} without series of their own. Only the first {limit} by name have them."
    return GaugeMetricFamily(name, text, max(0, count - limit))
