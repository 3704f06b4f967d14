"""Generator of docs/reference/metrics.md: the metrics that the operator and the trainers expose."""

from __future__ import annotations

from tests.support.compatibility.public_names import list_trainer_metrics
from tests.support.operator.exposed_metrics import Exposed, list_metric_families

from documentation.tables import NOTE, render_table

_HEADER = """# Metrics

The metrics that `/metrics` of the operator (port 9090) and of each trainer pod (port 8080) serve, with the help texts
of the code. [Observability](../operations/observability.md) describes how to scrape them, their limits, the alerts and
the dashboard. Names and labels are [kept compatible](../design/0010-compatibility.md).
"""
_HEAD = ("Metric", "Type", "Labels", "Meaning")


def render_metrics_page() -> str:
    """Return the page as Markdown."""
    operator = {name: metric for name, metric in list_metric_families().items() if name.startswith("finetune_")}
    parts = (
        ("The operator", {name: metric for name, metric in operator.items() if name.startswith("finetune_operator_")}),
        ("FineTuneJobs", _select(operator, ("finetune_job", "finetune_gpus", "finetune_running_jobs"))),
        ("FineTuneSchedules", _select(operator, ("finetune_schedule",))),
        ("FineTuneSweeps", _select(operator, ("finetune_sweep",))),
        ("Other objects", _select(operator, ("finetune_unreadable", "finetune_foreign", "finetune_profiles"))),
        ("A trainer", list_trainer_metrics()),
    )
    shown = [name for _, metrics in parts for name in metrics if name in operator]
    if missing := set(operator).symmetric_difference(shown):
        raise AssertionError(f"metrics without a section: {sorted(missing)}")
    return "\n".join([NOTE + _HEADER, *(_render_section(title, metrics) for title, metrics in parts)])


def _select(metrics: dict[str, Exposed], prefixes: tuple[str, ...]) -> dict[str, Exposed]:
    return {name: metric for name, metric in metrics.items() if name.startswith(prefixes)}


def _render_section(title: str, metrics: dict[str, Exposed]) -> str:
    rows = [
        (f"`{name}`", metric.type, ", ".join(f"`{label}`" for label in sorted(metric.labels)), metric.help_text)
        for name, metric in sorted(metrics.items())
    ]
    return f"## {title}\n\n{render_table(_HEAD, rows)}"
