"""Tables that compare the tuned model with each of `evaluation.baselines`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.evaluation.decisions import ChangeDirection, comparison_direction
from finetune_trainer.records.evaluation import Comparison, EvaluationReport, Measure


@dataclass(frozen=True)
class BaselineRow:
    """One metric of a baseline and of the tuned model."""

    measure: Measure
    comparison: Comparison
    direction: ChangeDirection

    @property
    def relative_change(self) -> float:
        """The absolute change, divided by the value of the baseline."""
        change, value = self.comparison.change, self.comparison.estimate.value
        return abs(change.value / value) if change and value else math.inf


@dataclass(frozen=True)
class BaselineTable:
    """All metrics of one baseline."""

    name: str
    rows: list[BaselineRow]


def build_baseline_tables(evaluation: EvaluationReport) -> list[BaselineTable]:
    """Return one table for each baseline, in the order of the config."""
    return build_tables(evaluation.measures)


def build_tables(measures: Sequence[Measure]) -> list[BaselineTable]:
    """Return one table for each baseline that the measures are compared with."""
    names = dict.fromkeys(name for measure in measures for name in measure.baselines)
    return [BaselineTable(name, _build_rows(measures, name)) for name in names]


def _build_rows(measures: Sequence[Measure], name: str) -> list[BaselineRow]:
    return [
        BaselineRow(measure, comparison, comparison_direction(comparison, higher_is_better=measure.higher_is_better))
        for measure in measures
        if (comparison := measure.baselines.get(name))
    ]
