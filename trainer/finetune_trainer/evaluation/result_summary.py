"""What the operator decides by: the verdicts of an evaluation, and the changes from `evaluation.baselines`."""

from __future__ import annotations

from typing import Literal

from finetune_trainer.contract import BaselineComparison, MetricChange, Verdicts
from finetune_trainer.records.evaluation import BiasResult, Comparison, Estimate, EvaluationReport, Measure

_MAX_CHANGES = 12
_SIGNIFICANT_DIGITS = 7
"""Digits of the reported numbers, so that several comparisons fit into a termination message. `evaluation.json` has all
digits."""


def build_verdicts(evaluation: EvaluationReport) -> Verdicts:
    """Return the verdicts. One that was not measured is `unknown`."""
    return Verdicts(
        overfitting=evaluation.overfitting.verdict,
        forgetting=evaluation.forgetting.verdict if evaluation.forgetting else "unknown",
        bias=_judge_bias(evaluation.bias),
    )


def _judge_bias(bias: BiasResult | None) -> Literal["none", "bias", "unknown"]:
    if bias is None or not bias.findings:
        return "unknown"
    return "bias" if any(finding.flagged for finding in bias.findings) else "none"


def build_comparisons(evaluation: EvaluationReport) -> list[BaselineComparison] | None:
    """Return the comparison with each baseline, or None without baselines. One that could not be measured has no
    changes."""
    return [
        BaselineComparison(
            name=name, digest=record.digest, held_out=record.held_out, changes=_list_changes(evaluation, name)
        )
        for name, record in evaluation.baselines.items()
    ] or None


def _list_changes(evaluation: EvaluationReport, baseline: str) -> list[MetricChange]:
    """Return the changes of the metrics with a comparison: `evalLoss`, then those of the task and of graders, then
    `perplexity`, which follows from the loss."""
    order = {"evalLoss": 0, "perplexity": 2}
    measures = sorted(evaluation.measures, key=lambda measure: order.get(measure.name, 1))
    changes = [
        _build_change(measure, comparison, comparison.change)
        for measure in measures
        if (comparison := measure.baselines.get(baseline)) and comparison.change
    ]
    return changes[:_MAX_CHANGES]


def _build_change(measure: Measure, comparison: Comparison, change: Estimate) -> MetricChange:
    return MetricChange(
        metric=measure.name,
        higher_is_better=measure.higher_is_better,
        baseline=_round(comparison.estimate.value),
        value=_round(measure.tuned.value),
        change=_round(change.value),
        low=None if change.low is None else _round(change.low),
        high=None if change.high is None else _round(change.high),
        p_value=None if comparison.p_value is None else _round(comparison.p_value),
        samples=change.samples,
    )


def _round(value: float) -> float:
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
