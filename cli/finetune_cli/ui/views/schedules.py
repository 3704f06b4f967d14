"""The pages of schedules."""

from __future__ import annotations

from typing import Any

from finetune_cli.ui.views.run import list_changes
from finetune_cli.ui.views.settings import list_settings
from finetune_operator.api.schedule import FineTuneSchedule, FineTuneScheduleStatus
from finetune_trainer.reporting.charts import LineChart, build_history_chart
from finetune_trainer.reporting.formatting import display_name


def build_schedule_context(schedule: FineTuneSchedule) -> dict[str, Any]:
    """Return what the page of a schedule shows, without its Events."""
    status = schedule.status or FineTuneScheduleStatus()
    return {
        "schedule": schedule,
        "status": status,
        "runs": [(run, list_changes(run.changes)) for run in status.runs],
        "charts": build_charts(status),
        "settings": list_settings(schedule.spec),
        "announcement": f"Schedule {schedule.metadata.name}: {len(status.active)} active",
    }


def build_charts(status: FineTuneScheduleStatus) -> list[tuple[str, LineChart]]:
    """Return the chart of each metric over the runs, the oldest first."""
    runs = list(reversed(status.runs))
    names = sorted({name for run in runs for name in run.metrics})
    charts = [(display_name(name), _build_chart(name, status)) for name in names]
    return [(name, chart) for name, chart in charts if chart]


def _build_chart(metric: str, status: FineTuneScheduleStatus) -> LineChart | None:
    measured = [run for run in reversed(status.runs) if metric in run.metrics]
    champion = status.champion.run if status.champion else None
    index = next((index for index, run in enumerate(measured) if run.name == champion), None)
    return build_history_chart(display_name(metric), [run.metrics[metric] for run in measured], index)
