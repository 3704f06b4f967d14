"""Gauges of FineTuneSweeps, computed from the object cache at each scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec
from prometheus_client.core import GaugeMetricFamily, Metric

from finetune_operator.api import Phase
from finetune_operator.controller.owner_gauges import OwnerMetadata, build_gauge, build_omitted_gauge, read_owners
from finetune_operator.kube.owner_cache import OwnerCache

_ENDED_PHASES = (Phase.COMPLETE, Phase.FAILED, Phase.CANCELLED)


class _Budget(msgspec.Struct, rename="camel"):
    gpu_seconds: int


class _Spec(msgspec.Struct):
    budget: _Budget | None = None


class _Counts(msgspec.Struct):
    total: int = 0
    active: int = 0
    complete: int = 0
    cut: int = 0
    failed: int = 0


class _Status(msgspec.Struct, rename="camel"):
    phase: str = Phase.PENDING.value
    reason: str = ""
    counts: _Counts = msgspec.field(default_factory=_Counts)
    gpu_seconds: int | None = None


class _Sweep(msgspec.Struct):
    """The part of a FineTuneSweep that gauges need."""

    metadata: OwnerMetadata
    spec: _Spec
    status: _Status

    @property
    def labels(self) -> list[str]:
        return [self.metadata.namespace, self.metadata.name]


def collect_sweep_gauges(cache: OwnerCache, max_series: int) -> Iterator[Metric]:
    """Yield the gauges of FineTuneSweeps, with series of their own for at most `max_series` that have not ended."""
    sweeps = list(read_owners(cache, _Sweep))
    yield _build_sweeps_gauge(sweeps)
    unfinished = [sweep for sweep in sweeps if sweep.status.phase not in _ENDED_PHASES]
    yield from _build_unfinished_gauges(unfinished[:max_series])
    yield build_omitted_gauge("finetune_sweeps_omitted", "Unfinished FineTuneSweeps", len(unfinished), max_series)


def _build_sweeps_gauge(sweeps: Iterable[_Sweep]) -> Metric:
    family = GaugeMetricFamily(
        "finetune_sweeps", "FineTuneSweeps by phase and reason.", labels=["namespace", "phase", "reason"]
    )
    states = Counter((sweep.metadata.namespace, sweep.status.phase, sweep.status.reason) for sweep in sweeps)
    for labels, count in states.items():
        family.add_metric(labels, count)
    return family


def _build_unfinished_gauges(sweeps: list[_Sweep]) -> Iterator[Metric]:
    trials = build_gauge(
        "finetune_sweep_trials",
        "Trials by state: Waiting, Active, Complete, Cut or Failed. Unfinished FineTuneSweeps only.",
        labels=["state"],
    )
    used = build_gauge(
        "finetune_sweep_gpu_seconds", "GPU-seconds that the trials have used. Unfinished FineTuneSweeps only."
    )
    budget = build_gauge(
        "finetune_sweep_budget_gpu_seconds", "Value of budget.gpuSeconds. Unfinished FineTuneSweeps only."
    )
    for sweep in sweeps:
        for state, count in _count_states(sweep.status.counts).items():
            trials.add_metric([*sweep.labels, state], count)
        if sweep.status.gpu_seconds is not None:
            used.add_metric(sweep.labels, sweep.status.gpu_seconds)
        if sweep.spec.budget:
            budget.add_metric(sweep.labels, sweep.spec.budget.gpu_seconds)
    yield from (trials, used, budget)


def _count_states(counts: _Counts) -> dict[str, int]:
    """Return the numbers of trials. Those that wait are not created, suspended or cancelled."""
    states = {
        "Active": counts.active,
        "Complete": counts.complete,
        "Cut": counts.cut,
        "Failed": counts.failed,
    }
    return {"Waiting": counts.total - sum(states.values()), **states}
