"""Compares two runs: settings, data, metrics, and the paired change where they have evaluated the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from finetune_operator.client.results import StoredResult
from finetune_trainer.contract import MetricChange
from finetune_trainer.evaluation.paired_results import EvaluatedRow


@dataclass(frozen=True)
class Difference:
    """A field whose value differs, such as `training.learningRate`. None: the run does not set it."""

    field: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class MetricRow:
    """A metric of both runs."""

    name: str
    first: float | None
    second: float | None
    change: MetricChange | None = None
    """Paired change from the first run to the second on `change.samples` common rows."""
    verdict: str = ""
    """`better`, `worse`, `unclear`, or why the runs cannot be compared on common rows."""


@dataclass(frozen=True)
class RunComparison:
    """The comparison of two runs. `first` and `second` are their names."""

    first: str
    second: str
    settings: list[Difference] = field(default_factory=list)
    """Fields of the config that differ, without data and output."""
    data: list[Difference] = field(default_factory=list)
    """Sources, numbers of rows and digests that differ."""
    metrics: list[MetricRow] = field(default_factory=list)
    common_rows: int = 0
    """Validation rows that both runs have evaluated."""


def compare_runs(
    first: StoredResult,
    second: StoredResult,
    first_rows: Sequence[EvaluatedRow] = (),
    second_rows: Sequence[EvaluatedRow] = (),
) -> RunComparison:
    """Compare two published results."""
    raise NotImplementedError
