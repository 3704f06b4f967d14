"""The page of a run."""

from __future__ import annotations

import shlex
from typing import Any

from finetune_cli.ui.source import Run
from finetune_cli.ui.views.settings import list_settings
from finetune_operator.api import Phase
from finetune_trainer.contract import DatasetReport, MetricChange, Reason
from finetune_trainer.evaluation.decisions import decide_direction
from finetune_trainer.records.evaluation import Estimate, EvaluationReport
from finetune_trainer.reporting.charts import build_loss_chart

_ENDED = (Phase.COMPLETE, Phase.FAILED, Phase.CANCELLED)


def build_run_context(run: Run, losses: EvaluationReport) -> dict[str, Any]:
    """Return what the page of a run shows, without its Events."""
    status, result = run.job.status, run.job.status.result if run.job.status else None
    return {
        "run": run.summary,
        "job": run.job,
        "progress": status.progress if status else None,
        "conditions": status.conditions if status else [],
        "losses": build_loss_chart(losses) if has_curve(losses) else None,
        "losses_are_complete": bool(result),
        "settings": list_settings(run.job.spec),
        "dataset": status.dataset if status else None,
        "rows": list_rows(status.dataset if status else None),
        "result": result,
        "has_report": result is not None or run.summary.reason == Reason.EVALUATION_GATE,
        "baselines": [(each.name, list_changes(each.changes)) for each in (result.baselines or [])] if result else [],
        "verdicts": result.verdicts.to_json() if result and result.verdicts else {},
        "commands": list_commands(run),
        "is_active": run.summary.phase not in _ENDED,
        "announcement": describe_progress(run),
    }


def has_curve(losses: EvaluationReport) -> bool:
    """Return whether there are enough losses for a chart."""
    return max(len(losses.training_losses), len(losses.validation_losses)) > 1


def list_rows(dataset: DatasetReport | None) -> list[tuple[str, int]]:
    """Return what happened to the rows. The numbers add up to the first one."""
    if dataset is None:
        return []
    rows = [("rows in the data", dataset.rows), ("trained on", dataset.kept), ("validation", dataset.validation)]
    rows += [("test", dataset.test)] if dataset.test is not None else []
    return rows + [(f"left out: {reason}", count) for reason, count in dataset.rejected.items()]


def list_changes(changes: list[MetricChange]) -> list[tuple[MetricChange, str, Estimate]]:
    """Return each change with its direction and its estimate."""
    estimates = [Estimate(value=each.change, low=each.low, high=each.high, samples=each.samples) for each in changes]
    return [
        (each, decide_direction(estimate, each.p_value, higher_is_better=each.higher_is_better), estimate)
        for each, estimate in zip(changes, estimates, strict=True)
    ]


def list_commands(run: Run) -> list[tuple[str, str]]:
    """Return purpose and text of commands for a terminal."""
    name, namespace = run.summary.name, run.summary.namespace
    target = f"{shlex.quote(name)} -n {shlex.quote(namespace)}"
    commands = [("Follow the log", f"finetune logs {target}"), ("Show the object", f"kubectl get ftj {target} -o yaml")]
    if run.summary.adapter_uri:
        commands += [
            ("Download the adapter", f"finetune get-adapter {shlex.quote(name)} {target}"),
            ("List its files", f"aws s3 ls --recursive {shlex.quote(run.summary.adapter_uri)}/"),
        ]
    elif run.summary.phase == Phase.SUSPENDED:
        commands += [("Resume the run", f"finetune resume {target}")]
    elif run.summary.phase not in _ENDED:
        commands += [
            ("Suspend the run", f"finetune suspend {target}"),
            ("End it for good", f"finetune cancel {target}"),
        ]
    return commands


def describe_progress(run: Run) -> str:
    """Return the progress as a sentence for screen readers."""
    summary = run.summary
    parts = [summary.phase, summary.reason if summary.phase != summary.reason else "", summary.completed]
    return f"Run {summary.name}: {', '.join(part for part in parts if part)}"
