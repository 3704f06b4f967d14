"""The ranking of the configurations of a FineTuneSweep by its objective. Only complete trials are ranked."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from finetune_operator.api.sweep import BestTrial, TrialStatus
from finetune_operator.status.sweeps.trials import COMPLETE

_LOWER_IS_BETTER = frozenset({"perplexity", "crossValidationDeviation", "biasFlags"})


class RankedConfiguration(NamedTuple):
    """A configuration with complete trials."""

    number: int
    value: float
    """The objective: of several seeds, the mean."""
    deviation: float | None
    """The sample standard deviation of the objective over the seeds, or None for one seed."""
    first: TrialStatus
    """The first complete trial."""


def is_lower_better(metric: str) -> bool:
    """Return whether lower values of a metric are better."""
    return metric.endswith(("Loss", "Perplexity")) or metric in _LOWER_IS_BETTER


def has_value(row: TrialStatus) -> bool:
    """Return whether a trial is ranked: it is complete, and its objective was measured."""
    has_result = row.adapter_uri is not None and row.digest is not None
    return row.phase == COMPLETE and row.value is not None and has_result


def rank_configurations(rows: Sequence[TrialStatus], metric: str) -> list[RankedConfiguration]:
    """Return the configurations with a value, the best first. Of equal ones, the one with the lower number is first."""
    sign = 1 if is_lower_better(metric) else -1
    measured = sorted(filter(has_value, rows), key=lambda row: row.configuration)
    groups = [list(group) for _, group in groupby(measured, key=lambda row: row.configuration)]
    return sorted(map(_combine_seeds, groups), key=lambda ranked: (sign * ranked.value, ranked.number))


def build_best(ranking: Sequence[RankedConfiguration]) -> BestTrial:
    """Return the best configuration, which is not compared with the second one yet."""
    best = ranking[0]
    return BestTrial(
        name=best.first.name,
        configuration=best.number,
        parameters=best.first.parameters,
        value=best.value,
        deviation=best.deviation,
        adapter_uri=best.first.adapter_uri or "",
        digest=best.first.digest or "",
        runner_up=ranking[1].first.name if len(ranking) > 1 else None,
    )


def _combine_seeds(rows: Sequence[TrialStatus]) -> RankedConfiguration:
    values = [row.value for row in rows if row.value is not None]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return RankedConfiguration(rows[0].configuration, statistics.fmean(values), deviation, rows[0])
