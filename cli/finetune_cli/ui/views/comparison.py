"""The page that compares two runs, and the page of a result without a FineTuneJob."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_cli.ui.source import Comparable, PastRun, Run
from finetune_cli.ui.views.run import list_rows
from finetune_cli.ui.views.settings import flatten
from finetune_operator.client import RunComparison, compare_runs
from finetune_trainer.contract import MetricChange
from finetune_trainer.records.evaluation import Estimate


@dataclass(frozen=True)
class Choice:
    """A run that can be compared. `key` names it in the address of the page."""

    key: str
    label: str
    run: Run | PastRun


def list_choices(runs: Sequence[Run], history: Sequence[PastRun]) -> dict[str, Choice]:
    """Return the runs with a result by their keys. A result with a FineTuneJob is listed once."""
    with_result = [run for run in runs if run.summary.adapter_uri]
    uris = {run.summary.adapter_uri.rstrip("/") for run in with_result}
    choices = [Choice(get_key(run), f"{run.summary.namespace}/{run.summary.name}", run) for run in with_result]
    choices += [
        Choice(past.result.uri, f"{past.summary.name} ({past.result.uri})", past)
        for past in history
        if past.result.uri.rstrip("/") not in uris
    ]
    return {choice.key: choice for choice in choices}


def preset_choices(chosen: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the two runs that the form shows: those that are chosen, and otherwise the newest ones."""
    known = [key for key in chosen if key in keys][:2]
    return (known + [key for key in keys if key not in known] + ["", ""])[:2]


def get_key(run: Run) -> str:
    """Return the key of a run in the cluster."""
    return f"{run.summary.namespace}/{run.summary.name}"


def build_comparison(first: Comparable, second: Comparable) -> RunComparison:
    """Compare two results."""
    return compare_runs(first.result, second.result, first.rows, second.rows)


def build_comparison_context(comparison: RunComparison) -> dict[str, Any]:
    """Return the tables of a comparison."""
    rows = [(row, _estimate_change(row.change) if row.change else None) for row in comparison.metrics]
    return {"comparison": comparison, "metrics": rows}


def _estimate_change(change: MetricChange) -> Estimate:
    return Estimate(value=change.change, low=change.low, high=change.high, samples=change.samples)


def build_result_context(past_run: PastRun) -> dict[str, Any]:
    """Return what the page of a result shows."""
    manifest = past_run.result.manifest
    uri = past_run.result.uri
    return {
        "run": past_run.summary,
        "result": past_run.result,
        "manifest": manifest,
        "settings": list(flatten(manifest.config)),
        "rows": list_rows(manifest.dataset),
        "verdicts": manifest.verdicts.to_json() if manifest.verdicts else {},
        "versions": sorted(manifest.versions.items()),
        "commands": [
            ("Download all files", f"aws s3 cp --recursive {shlex.quote(uri)}/ ."),
            ("List them", f"aws s3 ls --recursive {shlex.quote(uri)}/"),
        ],
    }
