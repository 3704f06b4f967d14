"""The page of a schedule: its runs as one table, with what was decided about each."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.contract import MetricChange, RunHistoryRow, ScheduleReportTask
from finetune_trainer.evaluation.decisions import ChangeDirection, decide_direction
from finetune_trainer.records.evaluation import Estimate
from finetune_trainer.reporting import charts
from finetune_trainer.reporting.environment import create_environment
from finetune_trainer.reporting.formatting import display_name
from finetune_trainer.reporting.links import link_run_report
from finetune_trainer.storage import Location
from finetune_trainer.text import to_one_line

_MAX_NAME_CHARS = 64


@dataclass(frozen=True)
class ShownChange:
    """The change of a metric from the champion of that time to a run."""

    metric: str
    estimate: Estimate
    p_value: float | None
    direction: ChangeDirection

    @classmethod
    def from_change(cls, change: MetricChange) -> ShownChange:
        """Return the change with its direction."""
        estimate = Estimate(value=change.change, low=change.low, high=change.high, samples=change.samples)
        direction = decide_direction(estimate, change.p_value, higher_is_better=change.higher_is_better)
        return cls(change.metric, estimate, change.p_value, direction)


def render_schedule_page(task: ScheduleReportTask) -> str:
    """Render the page. It loads no resources and runs no scripts."""
    champions = [row for row in task.rows if row.is_champion]
    metrics = sorted({metric for row in task.rows for metric in row.metrics})
    built = [(metric, _build_chart(metric, task.rows)) for metric in metrics]
    context = {
        "task": task,
        "champion": champions[0].run if champions else None,
        "links": [link_run_report(Location.parse(task.report_uri), row.adapter_uri) for row in task.rows],
        "changes": [[ShownChange.from_change(change) for change in row.changes] for row in task.rows],
        "charts": [(metric, chart) for metric, chart in built if chart],
    }
    return create_environment().get_template("schedule.html.j2").render(context)


def _build_chart(metric: str, rows: list[RunHistoryRow]) -> charts.LineChart | None:
    """Build the chart of a metric over the runs that have it, the oldest first."""
    measured = [row for row in reversed(rows) if metric in row.metrics]
    champions = [index for index, row in enumerate(measured) if row.is_champion]
    values = [row.metrics[metric] for row in measured]
    name = to_one_line(display_name(metric), _MAX_NAME_CHARS)
    return charts.build_history_chart(name, values, champions[-1] if champions else None)
