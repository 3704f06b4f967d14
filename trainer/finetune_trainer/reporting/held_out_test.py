"""The section on the rows of `evaluation.test`, which did not choose the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.evaluation.decisions import ChangeDirection, change_direction
from finetune_trainer.records.evaluation import EvaluationReport, Measure
from finetune_trainer.reporting import charts, verdicts
from finetune_trainer.reporting.baselines import BaselineTable, build_tables
from finetune_trainer.reporting.charts import Whisker

EXPLANATION = (
    "These rows were measured once, after the training. Neither the training nor early stopping has seen them, and no "
    "model is chosen by them, unlike by the validation rows."
)
BASELINE_NOTE = "A baseline may have been trained on these rows, which makes it look better than it is."


@dataclass(frozen=True)
class HeldOutTestSection:
    """All that the page and the card show of the test rows."""

    summary: str
    """The metrics by the direction of their change."""
    measures: Sequence[Measure]
    directions: Sequence[ChangeDirection]
    """Direction of the change of each measure."""
    whiskers: Sequence[Whisker | None]
    """Chart of the change of each measure, or None without an interval."""
    baselines: Sequence[BaselineTable]
    explanation: str = EXPLANATION
    baseline_note: str = BASELINE_NOTE

    @property
    def has_p_values(self) -> bool:
        """Whether a change has the p-value of an exact test."""
        return any(measure.p_value is not None for measure in self.measures)


def build_section(evaluation: EvaluationReport) -> HeldOutTestSection | None:
    """Return the section, or None without test data."""
    measures = evaluation.test_measures
    if not measures:
        return None
    return HeldOutTestSection(
        summary=verdicts.describe_directions(verdicts.group_measures(measures)),
        measures=measures,
        directions=[*map(change_direction, measures)],
        whiskers=[charts.build_whisker(measure.change, measure.higher_is_better) for measure in measures],
        baselines=build_tables(measures),
    )
