"""Compares the best configuration of a sweep with the second one, on the validation rows that both have evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_trainer.contract import MetricChange, SweepReportTask, TrialRow
from finetune_trainer.evaluation.decisions import decide_direction
from finetune_trainer.evaluation.paired_results import NotComparable, compare_rows, pair_rows
from finetune_trainer.formatting import format_number, format_signed, pluralize
from finetune_trainer.records.evaluation import Estimate
from finetune_trainer.records.sweep import ConfigurationResult
from finetune_trainer.storage import S3
from finetune_trainer.tasks.trial_results import NotReadable, read_manifest, read_rows
from finetune_trainer.text import to_one_line

_MAX_MESSAGE_CHARS = 900
_ROW_MEANS = ("chrf",)
"""Metrics of all rows together that are compared by the mean of the rows' scores."""


@dataclass(frozen=True)
class SweepComparison:
    """The verdict on the best configuration, with its numbers."""

    verdict: Literal["Better", "Inconclusive", "NotCompared"]
    message: str
    change: MetricChange | None = None
    compared: list[str] = field(default_factory=list)


def compare_best(s3: S3, task: SweepReportTask, ranked: list[ConfigurationResult]) -> SweepComparison:
    """Compare the first complete seed of the best two configurations.

    An unadjusted two-sided test of the first against the second is a valid test of whether the first is the best,
    however many there are: Hung and Fithian, 2019, https://arxiv.org/abs/1610.03944.
    """
    if not ranked:
        return SweepComparison("NotCompared", "No trial is complete.")
    best = get_first_complete(ranked[0])
    if len(ranked) == 1:
        message = f"{describe_trial(best)} is the only configuration with a complete trial."
        return SweepComparison("NotCompared", message)
    second = get_first_complete(ranked[1])
    try:
        change = _compare_trials(s3, task.objective, (best, second))
    except (NotComparable, NotReadable) as error:
        message = (
            f"{describe_trial(best)} has the best {task.objective}, {format_number(ranked[0].value or 0)}. It was not "
            f"compared with {describe_trial(second)}: {error}."
        )
        return SweepComparison("NotCompared", to_one_line(message, _MAX_MESSAGE_CHARS))
    return _conclude(ranked, change)


def get_first_complete(result: ConfigurationResult) -> TrialRow:
    """Return the complete trial with the first seed. Raises `StopIteration` if there is none."""
    return next(trial for trial in result.trials if trial.value is not None)


def describe_trial(trial: TrialRow) -> str:
    """Describe a trial by its name and its parameters: `lr-2 (learningRate 0.0003)`."""
    return f"{trial.name} ({trial.parameters.describe()})"


def _compare_trials(s3: S3, metric: str, trials: tuple[TrialRow, TrialRow]) -> MetricChange:
    for trial in trials:
        read_manifest(s3, trial)  # the rows are those of the trial, not of a run that has replaced its result
    best_rows, second_rows = (read_rows(s3, trial) for trial in trials)
    return compare_rows(metric, pair_rows(second_rows, best_rows))


def _conclude(ranked: list[ConfigurationResult], change: MetricChange) -> SweepComparison:
    best, second = (get_first_complete(result) for result in ranked[:2])
    estimate = Estimate(value=change.change, low=change.low, high=change.high, samples=change.samples)
    direction = decide_direction(estimate, change.p_value, higher_is_better=change.higher_is_better)
    conclusions = {
        "better": f"{best.name} is better",
        "worse": f"this seed of {second.name} is better, unlike the mean of all seeds",
        "few": "these are too few rows to tell them apart",
    }
    message = (
        f"{describe_trial(best)} has {change.metric} {format_number(change.value)}, {describe_trial(second)} has "
        f"{format_number(change.baseline)}: change {_describe_change(change)} on "
        f"{pluralize(change.samples, 'common row')}: {conclusions.get(direction, 'the difference may be chance')}."
        f"{_describe_seeds(ranked)}{_describe_metric(change.metric)}"
    )
    verdict: Literal["Better", "Inconclusive"] = "Better" if direction == "better" else "Inconclusive"
    message = to_one_line(message, _MAX_MESSAGE_CHARS)
    return SweepComparison(verdict, message, change, [best.name, second.name])


def _describe_change(change: MetricChange) -> str:
    """Describe a change with its interval or p-value: `-0.010 (-0.031 to +0.012)`."""
    if change.low is not None and change.high is not None:
        evidence = f"{format_signed(change.low)} to {format_signed(change.high)}"
    elif change.p_value is not None:
        evidence = f"p = {change.p_value:.2g}"
    else:
        evidence = "no interval"
    return f"{format_signed(change.change)} ({evidence})"


def _describe_seeds(ranked: list[ConfigurationResult]) -> str:
    if all(len(result.trials) == 1 for result in ranked[:2]):
        return ""
    best, second = (get_first_complete(result) for result in ranked[:2])
    return f" These are the results of seed {best.seed} of the first and seed {second.seed} of the second."


def _describe_metric(metric: str) -> str:
    if metric not in _ROW_MEANS:
        return ""
    return f" {metric} is compared by the mean of the rows' scores, which differs from that of all rows together."
