"""The interface between the manager and the controller of one kind: reconciler, pollers and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import Metric

from finetune_operator.api.objects import ObjectKey
from finetune_operator.kube.informer import Informer


class Reconciler(Protocol):
    """Brings the cluster to the desired state of one object."""

    async def reconcile(self, key: ObjectKey) -> float | None:
        """Return the seconds until the next reconcile, or None if only events need one."""


class Poller(Protocol):
    """Collects what no watch reports, as long as this replica is the leader."""

    interval: float
    """Seconds between two polls."""

    def reset(self) -> None:
        """Forget earlier results, because another replica has been the leader in the meantime."""

    async def poll(self, enqueue: Callable[[ObjectKey], None]) -> None:
        """Poll once, and enqueue the objects whose state changed."""


@dataclass(frozen=True)
class Controller:
    """One kind of the API, with its cache, reconciler, pollers and metrics."""

    kind: str
    informer: Informer
    reconciler: Reconciler
    pollers: Sequence[Poller] = ()
    collect_metrics: Callable[[], Iterable[Metric]] = tuple
    """Returns the gauges of this kind. They are exposed by the leader only."""
