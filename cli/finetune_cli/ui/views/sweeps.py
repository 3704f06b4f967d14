"""The pages of sweeps."""

from __future__ import annotations

from typing import Any

from finetune_cli.ui.views.settings import format_value, list_settings
from finetune_operator.api.sweep import FineTuneSweep, FineTuneSweepStatus, TrialStatus
from finetune_trainer.reporting.charts import ScatterChart, build_scatter_chart
from finetune_trainer.reporting.formatting import display_name

_LOWER_IS_BETTER = ("loss", "perplexity")


def build_sweep_context(sweep: FineTuneSweep) -> dict[str, Any]:
    """Return what the page of a sweep shows, without its Events."""
    status = sweep.status or FineTuneSweepStatus()
    trials = rank_trials(status.trials, sweep.spec.objective.metric)
    names = sorted({name for trial in trials for name in trial.parameters.to_json()})
    return {
        "sweep": sweep,
        "status": status,
        "metric": display_name(sweep.spec.objective.metric),
        "names": names,
        "trials": [(trial, _list_values(trial, names)) for trial in trials],
        "charts": build_charts(trials, names, sweep.spec.objective.metric),
        "settings": list_settings(sweep.spec),
        "announcement": f"Sweep {sweep.metadata.name}: {status.phase or 'new'}, {status.counts.finished or 'no trial'}",
    }


def rank_trials(trials: list[TrialStatus], metric: str) -> list[TrialStatus]:
    """Return the trials with a value, the best first, and then the others in their order."""
    sign = 1 if is_lower_better(metric) else -1
    return sorted(trials, key=lambda trial: float("inf") if trial.value is None else sign * trial.value)


def is_lower_better(metric: str) -> bool:
    """Return whether lower values of a metric are better: those of losses and perplexities."""
    return metric.lower().endswith(_LOWER_IS_BETTER)


def build_charts(ranked: list[TrialStatus], names: list[str], metric: str) -> list[tuple[str, ScatterChart]]:
    """Return the chart of the objective over each parameter that has several positive values."""
    charts = [(name, _build_chart(ranked, name, metric)) for name in names]
    return [(name, chart) for name, chart in charts if chart]


def _build_chart(ranked: list[TrialStatus], name: str, metric: str) -> ScatterChart | None:
    pairs = [(trial.parameters.to_json().get(name), trial.value) for trial in ranked if trial.value is not None]
    numbers = [(float(key), value) for key, value in pairs if isinstance(key, (int, float)) and key > 0]
    return build_scatter_chart(display_name(metric), numbers) if len(numbers) == len(pairs) else None


def _list_values(trial: TrialStatus, names: list[str]) -> list[str]:
    values = trial.parameters.to_json()
    return [format_value(values[name]) if name in values else "" for name in names]
