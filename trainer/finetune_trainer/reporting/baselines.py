"""Tables that compare the tuned model with each of `evaluation.baselines`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from finetune_trainer.evaluation.decisions import ChangeDirection, comparison_direction
from finetune_trainer.records.evaluation import BaselineRecord, Comparison, EvaluationReport, Measure

_HELD_OUT = "The validation rows were held out when the baseline was trained, too."
_MAYBE_TRAINED = (
    "The validation rows may be among the rows that the baseline, or the adapter that this training started from, was "
    "trained on, which makes that one look better than it is."
)


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
    held_out_note: str = ""
    """Whether the validation rows were held out when the baseline was trained, as a sentence."""


def build_baseline_tables(evaluation: EvaluationReport) -> list[BaselineTable]:
    """Return one table for each baseline, in the order of the config."""
    return [
        replace(table, held_out_note=_describe_rows(evaluation, table.name))
        for table in build_tables(evaluation.measures)
    ]


def _describe_rows(evaluation: EvaluationReport, name: str) -> str:
    return _HELD_OUT if evaluation.baselines.get(name, BaselineRecord()).held_out else _MAYBE_TRAINED


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
